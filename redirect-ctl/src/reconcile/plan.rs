//! The pure planner: desired and actual state in, ordered operations out.
//!
//! Operations are single map writes that packets see at once, in between each other. The order keeps every intermediate state sound:
//!
//! 1. *Detach* what is unwanted: an interface must not go on redirecting by tables that are being taken apart.
//! 2. *Set relays*, then *set classes*: a class never names a relay that is not there.
//! 3. *Set subscribers*, longest prefixes first: a subscriber never names a class that is not there, and a short prefix that comes along
//!    with exceptions inside it never covers them for a moment.
//! 4. *Remove subscribers*, shortest first, and after the sets: an exception is the last to go, and an address that changes from one
//!    prefix to another is never left with none.
//! 5. *Clear classes*, then *clear relays*: nobody names them any more.
//! 6. *Attach*: by complete tables only. A changed hook is a detach and an attach side by side, so that the gap is short.
//! 7. *Set the revision*: it is true the moment it can be read.
//!
//! A number means the same class (relay) on both sides: the store gives a freed number away only after the kernel holds the revision
//! that freed it, so "class 5 is deleted" and "class 5 is another one" are never parts of one plan.

use std::collections::BTreeMap;

use ipnet::IpNet;
use redirect_common::policy::{Class, Relay};

use crate::dataplane::{Attachment, ClassId, Hook, Operation, RelayId, Role};

/// What the kernel should hold. `subscribers` may be limited to some prefixes; then [`Actual::subscribers`] is limited to the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub revision: u64,
    pub relays: BTreeMap<RelayId, Relay>,
    pub classes: BTreeMap<ClassId, Class>,
    pub subscribers: BTreeMap<IpNet, ClassId>,
    pub interfaces: BTreeMap<String, (Role, Hook)>,
}

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    pub revision: u64,
    pub relays: BTreeMap<RelayId, Relay>,
    pub classes: BTreeMap<ClassId, Class>,
    pub subscribers: BTreeMap<IpNet, ClassId>,
    pub interfaces: BTreeMap<String, Attachment>,
}

/// Which subscribers go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The usual order, which never leaves an address without a class in between.
    #[default]
    SetsFirst,
    /// Makes room: for a table so full that it cannot hold the old and the new at once.
    RemovalsFirst,
}

/// The operations that lead from `actual` to `desired`; none where they agree.
pub fn plan(desired: &Desired, actual: &Actual, order: Order) -> Vec<Operation> {
    let mut operations = Vec::new();
    operations.extend(detach(desired, actual));
    operations.extend(
        changed(&desired.relays, &actual.relays).map(|(id, relay)| Operation::SetRelay { id: *id, relay: *relay }),
    );
    operations.extend(
        changed(&desired.classes, &actual.classes).map(|(id, class)| Operation::SetClass { id: *id, class: *class }),
    );
    let (sets, removals) = (set_subscribers(desired, actual), remove_subscribers(desired, actual));
    match order {
        Order::SetsFirst => operations.extend(sets.into_iter().chain(removals)),
        Order::RemovalsFirst => operations.extend(removals.into_iter().chain(sets)),
    }
    operations.extend(gone(&desired.classes, &actual.classes).map(|id| Operation::ClearClass { id: *id }));
    operations.extend(gone(&desired.relays, &actual.relays).map(|id| Operation::ClearRelay { id: *id }));
    operations.extend(attach(desired, actual));
    if desired.revision != actual.revision {
        operations.push(Operation::SetRevision(desired.revision));
    }
    operations
}

fn detach(desired: &Desired, actual: &Actual) -> Vec<Operation> {
    gone(&desired.interfaces, &actual.interfaces).map(|name| Operation::Detach { name: name.clone() }).collect()
}

fn set_subscribers(desired: &Desired, actual: &Actual) -> Vec<Operation> {
    let mut sets: Vec<_> = changed(&desired.subscribers, &actual.subscribers).collect();
    sets.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
    sets.into_iter().map(|(prefix, class)| Operation::SetSubscriber { prefix: *prefix, class: *class }).collect()
}

fn remove_subscribers(desired: &Desired, actual: &Actual) -> Vec<Operation> {
    let mut removals: Vec<_> = gone(&desired.subscribers, &actual.subscribers).collect();
    removals.sort_by_key(|prefix| prefix.prefix_len());
    removals.into_iter().map(|prefix| Operation::RemoveSubscriber { prefix: *prefix }).collect()
}

fn attach(desired: &Desired, actual: &Actual) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (name, (role, hook)) in &desired.interfaces {
        match actual.interfaces.get(name) {
            Some(attachment) if (attachment.role, attachment.hook) == (*role, *hook) => continue,
            Some(_) => operations.push(Operation::Detach { name: name.clone() }),
            None => {}
        }
        operations.push(Operation::Attach { name: name.clone(), role: *role, hook: *hook });
    }
    operations
}

/// Entries of `desired` that `actual` lacks or holds with another value.
fn changed<'a, K: Ord, V: PartialEq>(
    desired: &'a BTreeMap<K, V>,
    actual: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    desired.iter().filter(|(key, value)| actual.get(key) != Some(value))
}

/// Keys of `actual` that `desired` lacks.
fn gone<'a, K: Ord, V, W>(desired: &'a BTreeMap<K, V>, actual: &'a BTreeMap<K, W>) -> impl Iterator<Item = &'a K> {
    actual.keys().filter(|key| !desired.contains_key(key))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

    use proptest::{collection, prelude::*};
    use redirect_common::policy::{Action, Fallback};

    use super::*;
    use crate::dataplane::{Dataplane, Mode, model::ModelDataplane};

    /// A small world, so that random states overlap: 4 relays, 6 classes, prefixes inside 10.0.0.0/28, 3 interfaces.
    fn world() -> impl Strategy<Value = Desired> {
        let relays = collection::btree_map(1..5_u16, 1..3_u16, 0..4);
        let classes = collection::btree_map(1..7_u16, (0..4_u8, 0..5_u8), 0..6);
        let subscribers = collection::btree_map((0..16_u8, 26..=32_u8), 1..7_u16, 0..12);
        let interfaces =
            collection::btree_map("[abc]", (0..3_usize).prop_map(|hook| [Hook::Auto, Hook::Xdp, Hook::Tc][hook]), 0..3);
        (0..4_u64, relays, classes, subscribers, interfaces).prop_map(
            |(revision, relays, classes, subscribers, interfaces)| {
                let relays: BTreeMap<_, _> = relays
                    .into_iter()
                    .map(|(id, port)| (id, Relay::new(Some(SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 1), port)), None)))
                    .collect();
                // The store's foreign keys: a reference to something absent does not occur in a desired state.
                let classes: BTreeMap<_, _> = classes
                    .into_iter()
                    .map(|(id, (action, relay))| {
                        let relay = if relays.contains_key(&relay.into()) { relay } else { 0 };
                        let action =
                            [Action::Pass, Action::Block, Action::Redirect, Action::Reject][usize::from(action)];
                        (id, Class::new(action, Fallback::Pass, relay))
                    })
                    .collect();
                let subscribers = subscribers
                    .into_iter()
                    .filter(|(_, class)| classes.contains_key(class))
                    .map(|((host, length), class)| {
                        let prefix = IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)), length).unwrap().trunc();
                        (prefix, class)
                    })
                    .collect();
                let interfaces = interfaces.into_iter().map(|(name, hook)| (name, (Role::Subscriber, hook))).collect();
                Desired { revision, relays, classes, subscribers, interfaces }
            },
        )
    }

    /// Puts the model into a state, past its checks of order.
    fn model_of(state: &Desired) -> ModelDataplane {
        let model = ModelDataplane::default();
        {
            let mut inside = model.state();
            inside.revision = state.revision;
            inside.relays.clone_from(&state.relays);
            inside.classes.clone_from(&state.classes);
            inside.subscribers.clone_from(&state.subscribers);
            inside.interfaces = state
                .interfaces
                .iter()
                .map(|(name, (role, hook))| (name.clone(), Attachment { role: *role, hook: *hook, mode: Mode::Tcx }))
                .collect();
        }
        model
    }

    fn actual_of(model: &ModelDataplane) -> Actual {
        Actual {
            revision: model.revision().unwrap(),
            relays: model.relays().unwrap(),
            classes: model.classes().unwrap(),
            subscribers: model.subscribers().unwrap(),
            interfaces: model.interfaces(),
        }
    }

    /// The class of an address by longest prefix, as the data plane finds it.
    fn class_of(subscribers: &BTreeMap<IpNet, ClassId>, address: IpAddr) -> Option<ClassId> {
        let covering = subscribers.iter().filter(|(prefix, _)| prefix.contains(&address));
        covering.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, class)| *class)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn the_plan_leads_to_the_desired_state_and_never_misroutes(before in world(), desired in world()) {
            let mut model = model_of(&before);
            let operations = plan(&desired, &actual_of(&model), Order::SetsFirst);
            for (done, operation) in operations.iter().enumerate() {
                model.apply(operation).unwrap();
                let state = model.state();
                state.check();
                for host in 0..64 {
                    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, host));
                    let class = class_of(&state.subscribers, address);
                    let known = [class_of(&before.subscribers, address), class_of(&desired.subscribers, address)];
                    prop_assert!(known.contains(&class), "{} has class {:?} after {}, wanted one of {:?}", address, class, operation, known);
                }
                prop_assert!(state.revision == before.revision || done + 1 == operations.len(), "the revision is not last");
            }
            let after = actual_of(&model);
            prop_assert_eq!(&after.relays, &desired.relays);
            prop_assert_eq!(&after.classes, &desired.classes);
            prop_assert_eq!(&after.subscribers, &desired.subscribers);
            prop_assert_eq!(after.revision, desired.revision);
            let attached: BTreeMap<_, _> = after.interfaces.iter().map(|(name, found)| (name.clone(), (found.role, found.hook))).collect();
            prop_assert_eq!(&attached, &desired.interfaces);
            prop_assert_eq!(plan(&desired, &after, Order::SetsFirst), vec![]);
        }

        #[test]
        fn a_plan_cut_short_is_repaired_by_the_next(before in world(), desired in world(), cut in any::<prop::sample::Index>()) {
            let mut model = model_of(&before);
            let operations = plan(&desired, &actual_of(&model), Order::SetsFirst);
            for operation in operations.iter().take(cut.index(operations.len() + 1)) {
                model.apply(operation).unwrap();
            }
            for operation in plan(&desired, &actual_of(&model), Order::SetsFirst) {
                model.apply(&operation).unwrap();
                model.state().check();
            }
            prop_assert_eq!(plan(&desired, &actual_of(&model), Order::SetsFirst), vec![]);
        }

        #[test]
        fn making_room_never_holds_more_than_before_or_after(before in world(), desired in world()) {
            let mut model = model_of(&before);
            let most = before.subscribers.len().max(desired.subscribers.len());
            for operation in plan(&desired, &actual_of(&model), Order::RemovalsFirst) {
                model.apply(&operation).unwrap();
                model.state().check();
                prop_assert!(model.state().subscribers.len() <= most);
            }
            prop_assert_eq!(plan(&desired, &actual_of(&model), Order::SetsFirst), vec![]);
        }

        #[test]
        fn some_keys_are_planned_like_all(before in world(), desired in world()) {
            // The keys that differ are what a change touches; the rest stays out of both sides.
            let touched = |state: &Desired| -> BTreeMap<_, _> {
                let differs = |prefix: &IpNet| before.subscribers.get(prefix) != desired.subscribers.get(prefix);
                state.subscribers.iter().filter(|(prefix, _)| differs(prefix)).map(|(prefix, value)| (*prefix, *value)).collect()
            };
            let model = model_of(&before);
            let partly_desired = Desired { subscribers: touched(&desired), ..desired.clone() };
            let partly_actual = Actual { subscribers: touched(&before), ..actual_of(&model) };
            prop_assert_eq!(plan(&partly_desired, &partly_actual, Order::SetsFirst), plan(&desired, &actual_of(&model), Order::SetsFirst));
        }
    }
}
