//! Which state of a resource is meant: the revision that changed it last, which is its entity tag, and what a request says about it
//! (RFC 9110 section 13).

use std::ops::Deref;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A resource, and the revision of the configuration that changed it last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Versioned<T> {
    #[serde(flatten)]
    pub resource: T,
    /// The revision that changed it last; the entity tag is this number in quotes. What is observed of it, such as health, is not meant.
    #[schema(read_only)]
    pub revision: u64,
}

impl<T> Versioned<T> {
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Versioned<U> {
        Versioned { resource: convert(self.resource), revision: self.revision }
    }
}

impl<T> Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.resource
    }
}

/// States of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum States {
    /// `*`: whichever, if it is there.
    Any,
    /// Those of these revisions.
    Of(Vec<u64>),
}

impl States {
    /// Of a resource whose last revision is `current`, or which is not there.
    pub fn contain(&self, current: Option<u64>) -> bool {
        match (self, current) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::Of(revisions), Some(current)) => revisions.contains(&current),
        }
    }
}

/// On what state of the resource a request insists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// It is one of these.
    pub if_match: Option<States>,
    /// It is none of these.
    pub if_none_match: Option<States>,
}

impl Conditions {
    /// It is as `revision` left it.
    pub fn is(revision: u64) -> Self {
        Self { if_match: Some(States::Of(vec![revision])), if_none_match: None }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether they hold for a resource whose last revision is `current`, or which is not there.
    pub fn hold(&self, current: Option<u64>) -> bool {
        self.if_match.as_ref().is_none_or(|states| states.contain(current))
            && !self.if_none_match.as_ref().is_some_and(|states| states.contain(current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_for_what_they_name() {
        let of = |revisions: &[u64]| Some(States::Of(revisions.to_vec()));
        let any = Some(States::Any);
        // If-Match, If-None-Match, and whether they hold: not there, at revision 5, at revision 6.
        let cases = [
            (None, None, [true, true, true]),
            (of(&[5]), None, [false, true, false]),
            (of(&[4, 6]), None, [false, false, true]),
            (of(&[]), None, [false, false, false]),
            (any.clone(), None, [false, true, true]),
            (None, any.clone(), [true, false, false]),
            (None, of(&[5]), [true, false, true]),
            (None, of(&[]), [true, true, true]),
            (of(&[5]), of(&[5]), [false, false, false]),
            (any.clone(), of(&[6]), [false, true, false]),
        ];
        for (if_match, if_none_match, expected) in cases {
            let conditions = Conditions { if_match, if_none_match };
            assert_eq!([None, Some(5), Some(6)].map(|current| conditions.hold(current)), expected, "{conditions:?}");
        }
    }
}
