//! The four roles, and sets of them.

use std::fmt;

use AccessRole as Role;

use crate::dataplane::words;

words! {
    /// What a caller of the API may do.
    AccessRole {
        /// Reads everything but tokens and the audit.
        Viewer = "viewer",
        /// Reads and writes subscribers, nothing else.
        Integrator = "integrator",
        /// Reads what a viewer does, and changes everything but who may do what.
        Operator = "operator",
        /// Everything.
        Admin = "admin",
    }
}

impl AccessRole {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Integrator, Self::Operator, Self::Admin];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of roles: those that somebody has, or those that will do.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    pub const NONE: Self = Self(0);

    pub const fn one(role: Role) -> Self {
        Self(role.bit())
    }

    #[must_use]
    pub const fn and(self, role: Role) -> Self {
        Self(self.0 | role.bit())
    }

    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn has(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    /// Whether one of these is among `wanted`.
    pub const fn meets(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.has(*role))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Role::name).collect();
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
