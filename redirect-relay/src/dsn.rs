//! What a client asks about delivery reports (RFC 3461): checked here, passed on as it was written.
//!
//! The values travel to the gateway as they came, so each is held to its grammar: nothing in one can end a parameter or a
//! line, whether it is read as written or decoded.

use std::fmt;

use crate::limits::{ENVID_MAX, ORCPT_MAX};

/// `RET=`: how much of the message a report returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Return {
    Full,
    Headers,
}

/// `NOTIFY=`: what is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notify {
    Never,
    /// At least one of the three.
    On {
        success: bool,
        failure: bool,
        delay: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a value of this parameter")]
pub(crate) struct DsnError;

pub(crate) fn ret(value: &str) -> Result<Return, DsnError> {
    if value.eq_ignore_ascii_case("FULL") {
        Ok(Return::Full)
    } else if value.eq_ignore_ascii_case("HDRS") {
        Ok(Return::Headers)
    } else {
        Err(DsnError)
    }
}

/// `notify-esmtp-value = "NEVER" / 1#notify-list-element` (section 4.1).
pub(crate) fn notify(value: &str) -> Result<Notify, DsnError> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Ok(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for element in value.split(',') {
        let wanted = match element.to_ascii_uppercase().as_str() {
            "SUCCESS" => &mut success,
            "FAILURE" => &mut failure,
            "DELAY" => &mut delay,
            _ => return Err(DsnError),
        };
        if std::mem::replace(wanted, true) {
            return Err(DsnError);
        }
    }
    Ok(Notify::On { success, failure, delay })
}

/// `envid-parameter = xtext`, printable when decoded (section 4.4).
pub(crate) fn envid(value: &str) -> Result<String, DsnError> {
    if value.is_empty() || value.len() > ENVID_MAX || !is_xtext(value) {
        return Err(DsnError);
    }
    Ok(value.to_owned())
}

/// `original-recipient-address = addr-type ";" xtext` (section 4.2).
pub(crate) fn orcpt(value: &str) -> Result<String, DsnError> {
    let (kind, address) = value.split_once(';').ok_or(DsnError)?;
    let is_kind = !kind.is_empty() && kind.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-');
    if value.len() > ORCPT_MAX || !is_kind || address.is_empty() || !is_xtext(address) {
        return Err(DsnError);
    }
    Ok(value.to_owned())
}

/// `xtext = *( xchar / hexchar )` (section 4), which holds printable ASCII when decoded.
pub(crate) fn is_xtext(text: &str) -> bool {
    let digit = |octet: u8| match octet {
        b'0'..=b'9' => Some(octet - b'0'),
        b'A'..=b'F' => Some(octet - b'A' + 10),
        _ => None,
    };
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        let fine = match octet {
            b'+' => {
                let decoded = octets.next().and_then(digit).zip(octets.next().and_then(digit));
                decoded.is_some_and(|(high, low)| matches!(high << 4 | low, b' '..=b'~'))
            }
            b'=' => false,
            _ => octet.is_ascii_graphic(),
        };
        if !fine {
            return false;
        }
    }
    true
}

impl fmt::Display for Return {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "FULL",
            Self::Headers => "HDRS",
        })
    }
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::On { success, failure, delay } = *self else { return f.write_str("NEVER") };
        let mut comma = "";
        for (wanted, name) in [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")] {
            if wanted {
                write!(f, "{comma}{name}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_in_one_form() {
        let ret = |value: &str| ret(value).map(|value| value.to_string());
        assert_eq!(ret("full"), Ok("FULL".into()));
        assert_eq!(ret("Hdrs"), Ok("HDRS".into()));
        assert_eq!(ret(""), Err(DsnError));
        let notify = |value: &str| notify(value).map(|value| value.to_string());
        assert_eq!(notify("never"), Ok("NEVER".into()));
        assert_eq!(notify("delay,Success"), Ok("SUCCESS,DELAY".into()));
        assert_eq!(notify("FAILURE,DELAY,SUCCESS"), Ok("SUCCESS,FAILURE,DELAY".into()));
        for value in ["", ",", "SUCCESS,", "NEVER,SUCCESS", "DELAY,DELAY", "SOMETIMES"] {
            assert_eq!(notify(value), Err(DsnError), "{value:?}");
        }
    }

    #[test]
    fn attack_34_nothing_is_injected_through_xtext() {
        for text in ["", "a", "a+2Bb+3D", "a@b;c", "+20+7E"] {
            assert!(is_xtext(text), "{text:?}");
        }
        for text in ["a=b", "a b", "+", "+0", "+0d+0a", "+0D", "+0A", "+00", "+7F", "+FF", "\u{e9}", "a\tb", "+2b"] {
            assert!(!is_xtext(text), "{text:?}");
        }
        assert!(envid(&"x".repeat(100)).is_ok());
        assert!(envid(&"x".repeat(101)).is_err());
        assert!(orcpt(&format!("rfc822;{}", "x".repeat(493))).is_ok());
        assert!(orcpt(&format!("rfc822;{}", "x".repeat(494))).is_err());
        for value in ["rfc822", "rfc822;", ";a@b", "rfc 822;a", "rfc822;a+0Ab"] {
            assert!(orcpt(value).is_err(), "{value:?}");
        }
    }
}
