//! Roles by the credentials of a Unix socket, and by the names of a client certificate.

use std::{
    collections::{BTreeMap, HashMap},
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

use nix::unistd::{Group, User, geteuid};

use super::role::{AccessRole as Role, Roles};
use crate::limits;

/// A user or a group, as the file names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Principal {
    Id(u32),
    Name(String),
}

/// `[access]` of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeersSettings {
    pub users: BTreeMap<Principal, Role>,
    pub groups: BTreeMap<Principal, Role>,
    /// By the DNS name or URI of a client certificate, in lower case.
    pub certificates: BTreeMap<String, Role>,
}

/// A name of the file that this machine does not know.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{key}: there is no {name} on this machine; create it, or correct the name")]
    Unknown { key: &'static str, name: String },
    #[error("{key}: cannot look {name} up: {source}")]
    Lookup { key: &'static str, name: String, source: nix::Error },
}

/// Who has which roles. Root and the daemon's own user administrate; who is not named has none.
#[derive(Debug, Default)]
pub struct Peers {
    users: HashMap<u32, Roles>,
    groups: HashMap<u32, Roles>,
    certificates: BTreeMap<String, Role>,
}

impl Peers {
    /// Looks the names up on this machine.
    pub fn resolve(settings: &PeersSettings) -> Result<Self, Error> {
        let mut users =
            ids(&settings.users, "access.users", |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))?;
        for admin in [0, geteuid().as_raw()] {
            users.insert(admin, Roles::one(Role::Admin));
        }
        let groups = ids(&settings.groups, "access.groups", group_named)?;
        Ok(Self { users, groups, certificates: settings.certificates.clone() })
    }

    /// Of a local user, by its own name and those of its groups.
    pub fn of_user(&self, uid: u32, gids: &[u32]) -> Roles {
        let own = self.users.get(&uid).copied().unwrap_or_default();
        gids.iter().filter_map(|gid| self.groups.get(gid)).fold(own, |roles, more| roles.or(*more))
    }

    /// Of a certificate with these names, and the first name that has a role.
    pub fn of_certificate<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> (Option<&'n str>, Roles) {
        let role = |name: &str| self.certificates.get(&name.to_ascii_lowercase()).copied();
        let known = names.into_iter().filter_map(|name| Some((name, role(name)?)));
        known.fold((None, Roles::NONE), |(first, roles), (name, role)| (first.or(Some(name)), roles.and(role)))
    }

    /// Whether this is the administrator of the machine.
    pub fn is_local_admin(uid: u32) -> bool {
        uid == 0 || uid == geteuid().as_raw()
    }
}

/// The number of a group that the file names.
pub fn group_id(group: &Principal) -> Result<u32, Error> {
    id(group, "api.socket_group", group_named)
}

fn group_named(name: &str) -> nix::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

fn ids(
    named: &BTreeMap<Principal, Role>,
    key: &'static str,
    id_of: fn(&str) -> nix::Result<Option<u32>>,
) -> Result<HashMap<u32, Roles>, Error> {
    let mut ids: HashMap<u32, Roles> = HashMap::new();
    for (principal, role) in named {
        let roles = ids.entry(id(principal, key, id_of)?).or_default();
        *roles = roles.and(*role);
    }
    Ok(ids)
}

fn id(principal: &Principal, key: &'static str, id_of: fn(&str) -> nix::Result<Option<u32>>) -> Result<u32, Error> {
    match principal {
        Principal::Id(id) => Ok(*id),
        Principal::Name(name) => id_of(name)
            .map_err(|source| Error::Lookup { key, name: name.clone(), source })?
            .ok_or_else(|| Error::Unknown { key, name: name.clone() }),
    }
}

/// All groups of the process at the other end of a Unix socket, as they were when it connected (`SO_PEERGROUPS`, Linux 4.13).
pub fn groups_of(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    // Few have more; for those the kernel says how many.
    match groups_up_to(socket, 32)? {
        Ok(gids) => Ok(gids),
        Err(count) => groups_up_to(socket, count)?.map_err(|_| io::Error::other("the groups of a process changed")),
    }
}

/// The groups, or how many there are if they are more than `count`.
fn groups_up_to(socket: &impl AsFd, count: usize) -> io::Result<Result<Vec<u32>, usize>> {
    let mut gids = vec![0_u32; count.min(limits::PEER_GROUPS_MAX)];
    let mut bytes = libc::socklen_t::try_from(mem::size_of_val(&gids[..])).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the kernel writes at most `bytes` bytes, which is the size of `gids`, and `bytes` itself.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            gids.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    let count = bytes as usize / size_of::<u32>();
    if result == 0 {
        gids.truncate(count);
        return Ok(Ok(gids));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ERANGE) { Ok(Err(count)) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(settings: &PeersSettings) -> Peers {
        Peers::resolve(settings).unwrap()
    }

    #[test]
    fn root_and_the_daemon_administrate_and_nobody_else_has_a_role() {
        let peers = peers(&PeersSettings::default());
        assert_eq!(peers.of_user(0, &[]), Roles::one(Role::Admin));
        assert_eq!(peers.of_user(geteuid().as_raw(), &[]), Roles::one(Role::Admin));
        assert_eq!(peers.of_user(4_000_000, &[0, 1, 4_000_000]), Roles::NONE);
        assert_eq!(peers.of_certificate(["a.example"]), (None, Roles::NONE));
    }

    #[test]
    fn a_user_has_the_roles_of_its_name_and_of_its_groups() {
        let peers = peers(&PeersSettings {
            users: [(Principal::Id(7001), Role::Viewer)].into(),
            groups: [(Principal::Id(7002), Role::Integrator), (Principal::Name("root".to_owned()), Role::Operator)]
                .into(),
            certificates: BTreeMap::new(),
        });
        assert_eq!(peers.of_user(7001, &[]), Roles::one(Role::Viewer));
        assert_eq!(peers.of_user(7003, &[1, 7002]), Roles::one(Role::Integrator));
        assert_eq!(peers.of_user(7001, &[7002, 0]), Roles::one(Role::Viewer).and(Role::Integrator).and(Role::Operator));
        assert_eq!(peers.of_user(7002, &[7001]), Roles::NONE, "a user's number is no group's");
    }

    #[test]
    fn a_certificate_has_the_roles_of_its_names() {
        let certificates = [("portal.example".to_owned(), Role::Integrator), ("noc.example".to_owned(), Role::Viewer)];
        let peers = peers(&PeersSettings { certificates: certificates.into(), ..PeersSettings::default() });
        assert_eq!(
            peers.of_certificate(["x.example", "Portal.Example"]),
            (Some("Portal.Example"), Roles::one(Role::Integrator))
        );
        assert_eq!(peers.of_certificate(["sub.portal.example", "*.example"]), (None, Roles::NONE));
    }

    #[test]
    fn a_name_that_the_machine_does_not_know_is_an_error() {
        let nobody = PeersSettings {
            groups: [(Principal::Name("no-such-group".to_owned()), Role::Viewer)].into(),
            ..PeersSettings::default()
        };
        let text = Peers::resolve(&nobody).unwrap_err().to_string();
        assert_eq!(text, "access.groups: there is no no-such-group on this machine; create it, or correct the name");
    }

    #[test]
    fn the_kernel_tells_the_groups_of_the_other_end() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut told = groups_of(&ours).unwrap();
        let mut own: Vec<_> = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        told.sort_unstable();
        own.sort_unstable();
        assert_eq!(told, own);
        let fewer = groups_up_to(&ours, 0).unwrap();
        assert_eq!(fewer, if own.is_empty() { Ok(own) } else { Err(own.len()) });
    }
}
