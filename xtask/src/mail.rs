//! Mail servers and clients of other makers, which the tests let meet the relay.
//!
//! They are unpacked, not installed: a machine has one mail server, and installing another starts it and removes the first.

use std::path::PathBuf;

use anyhow::Result;

use crate::{debian, exec};

/// A program and the packages that bring it; `folder` is where the tests look for it, below `lab` in the target directory.
pub(crate) struct Program {
    pub(crate) package: &'static str,
    with: &'static [&'static str],
    folder: &'static str,
    file: &'static str,
}

pub(crate) const PROGRAMS: [Program; 4] = [
    // The light one of Debian's has no SCRAM.
    Program { package: "exim4-daemon-heavy", with: &[], folder: "exim", file: "usr/sbin/exim4" },
    Program { package: "opensmtpd", with: &[], folder: "opensmtpd", file: "usr/sbin/smtpd" },
    // Passwords and mechanisms for Postfix and Exim.
    Program { package: "sasl2-bin", with: &["libsasl2-modules"], folder: "sasl", file: "usr/sbin/saslpasswd2" },
    Program { package: "msmtp", with: &[], folder: "msmtp", file: "usr/bin/msmtp" },
];

impl Program {
    fn folder(&self) -> Result<PathBuf> {
        Ok(exec::target_dir()?.join("lab").join(self.folder))
    }

    pub(crate) fn is_present(&self) -> Result<bool> {
        Ok(self.folder()?.join(self.file).is_file())
    }

    pub(crate) fn unpack(&self) -> Result<()> {
        debian::unpack(self.package, self.with, &self.folder()?)
    }
}
