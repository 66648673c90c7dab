//! The pure planner: desired and actual state in, ordered operations out.
//!
//! Packets come in between the operations. The order keeps every intermediate state sound:
//!
//! 1. *Detach* what is unwanted: an interface must not go on redirecting by tables that are being taken apart.
//! 2. *Set relays*, then *set classes*: a class never names a relay that is not there.
//! 3. *Change subscribers*, all of them from one packet to the next: the changes are staged where no packet looks, a switch has packets look
//!    there, and then they are settled where packets looked before. A single change is a single write. Before it, every class is there that
//!    a subscriber gets; after it, nobody has a class any more that is to go.
//! 4. *Clear classes*, then *clear relays*: nobody names them any more.
//! 5. *Attach*: by complete tables only. A changed hook is a detach and an attach side by side, so that the gap is short.
//! 6. *Set the revision*: it is true the moment it can be read.
//!
//! A number means the same class (relay) on both sides: the store gives a freed number away only after the kernel holds the revision
//! that freed it, so "class 5 is deleted" and "class 5 is another one" are never parts of one plan.

use std::collections::BTreeMap;

use ipnet::IpNet;
use redirect_common::policy::{Class, Relay};

use crate::{
    dataplane::{Attachment, ClassId, Hook, Operation, RelayId, Role, SubscriberChange},
    limits,
};

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

/// Which subscribers change first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All at once: a packet meets the subscribers from before or those from after.
    #[default]
    AtOnce,
    /// One by one, and first those that go: for a table so full that it cannot hold the old and the new at once. What an attempt to change all
    /// at once has staged is not switched to.
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
        Order::AtOnce => operations.extend(change_subscribers(&[sets, removals].concat())),
        Order::RemovalsFirst => operations.extend(make_room(sets, removals)),
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

fn set_subscribers(desired: &Desired, actual: &Actual) -> Vec<SubscriberChange> {
    changed(&desired.subscribers, &actual.subscribers).map(|(prefix, class)| (*prefix, Some(*class))).collect()
}

fn remove_subscribers(desired: &Desired, actual: &Actual) -> Vec<SubscriberChange> {
    gone(&desired.subscribers, &actual.subscribers).map(|prefix| (*prefix, None)).collect()
}

/// Makes changes that packets see at once. In steps, because a million writes take seconds, and others wait.
fn change_subscribers(changes: &[SubscriberChange]) -> Vec<Operation> {
    match changes {
        [] => Vec::new(),
        [change] => vec![change_subscriber(change)],
        _ => {
            let steps = || changes.chunks(limits::SUBSCRIBERS_STEP).map(<[_]>::to_vec);
            steps()
                .map(Operation::StageSubscribers)
                .chain([Operation::SwitchSubscribers])
                .chain(steps().map(Operation::SettleSubscribers))
                .collect()
        }
    }
}

/// Changes one after the other. Removals go first, the shortest prefixes before the others: an exception is the last to go. Sets follow, the longest
/// before the others: a short prefix that comes along with exceptions inside it never covers them.
fn make_room(mut sets: Vec<SubscriberChange>, mut removals: Vec<SubscriberChange>) -> impl Iterator<Item = Operation> {
    removals.sort_by_key(|(prefix, _)| prefix.prefix_len());
    sets.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
    removals.into_iter().chain(sets).map(|change| change_subscriber(&change))
}

fn change_subscriber((prefix, class): &SubscriberChange) -> Operation {
    match class {
        Some(class) => Operation::SetSubscriber { prefix: *prefix, class: *class },
        None => Operation::RemoveSubscriber { prefix: *prefix },
    }
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
                .map(|(name, (role, hook))| {
                    let attachment = Attachment { role: *role, hook: *hook, mode: Mode::Tcx, restart_safe: false };
                    (name.clone(), attachment)
                })
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

    /// Of every address, covered or not.
    fn classes_of(subscribers: &BTreeMap<IpNet, ClassId>) -> Vec<Option<ClassId>> {
        (0..64).map(|host| class_of(subscribers, IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)))).collect()
    }

    #[test]
    fn many_changes_are_made_in_steps_and_hold_at_once() {
        let subscribers: BTreeMap<_, _> = (0..=u32::try_from(limits::SUBSCRIBERS_STEP).unwrap())
            .map(|number| (IpNet::from(IpAddr::V4((0x0a00_0000 + number).into())), 1))
            .collect();
        let desired = Desired { subscribers, ..Desired::default() };
        let operations = plan(&desired, &Actual::default(), Order::AtOnce);
        let told: Vec<_> = operations.iter().map(ToString::to_string).collect();
        let (step, rest) = (limits::SUBSCRIBERS_STEP, 1);
        let [stages, settles] =
            ["stage", "settle"].map(|what| [step, rest].map(|count| format!("{what} {count} subscribers")));
        assert_eq!(told, [&stages[..], &["switch subscribers".to_owned()], &settles[..]].concat());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn the_plan_leads_to_the_desired_state_and_never_misroutes(before in world(), desired in world()) {
            let mut model = model_of(&before);
            let operations = plan(&desired, &actual_of(&model), Order::AtOnce);
            for (done, operation) in operations.iter().enumerate() {
                model.apply(operation).unwrap();
                let state = model.state();
                state.check();
                let [classes, old, new] = [&state.subscribers, &before.subscribers, &desired.subscribers].map(classes_of);
                prop_assert!(classes == old || classes == new, "{:?} after {}, {:?} before, {:?} wanted", classes, operation, old, new);
                prop_assert!(state.revision == before.revision || done + 1 == operations.len(), "the revision is not last");
            }
            let after = actual_of(&model);
            prop_assert_eq!(&after.relays, &desired.relays);
            prop_assert_eq!(&after.classes, &desired.classes);
            prop_assert_eq!(&after.subscribers, &desired.subscribers);
            prop_assert_eq!(after.revision, desired.revision);
            let attached: BTreeMap<_, _> = after.interfaces.iter().map(|(name, found)| (name.clone(), (found.role, found.hook))).collect();
            prop_assert_eq!(&attached, &desired.interfaces);
            prop_assert_eq!(plan(&desired, &after, Order::AtOnce), vec![]);
            prop_assert!(model.state().idle.is_empty());
        }

        #[test]
        fn a_plan_cut_short_is_repaired_by_the_next(before in world(), desired in world(), cut in any::<prop::sample::Index>()) {
            let mut model = model_of(&before);
            let operations = plan(&desired, &actual_of(&model), Order::AtOnce);
            for operation in operations.iter().take(cut.index(operations.len() + 1)) {
                model.apply(operation).unwrap();
            }
            for operation in plan(&desired, &actual_of(&model), Order::AtOnce) {
                model.apply(&operation).unwrap();
                model.state().check();
            }
            prop_assert_eq!(plan(&desired, &actual_of(&model), Order::AtOnce), vec![]);
        }

        #[test]
        fn making_room_never_holds_more_than_before_or_after(before in world(), desired in world()) {
            let mut model = model_of(&before);
            let most = before.subscribers.len().max(desired.subscribers.len());
            for operation in plan(&desired, &actual_of(&model), Order::RemovalsFirst) {
                model.apply(&operation).unwrap();
                model.state().check();
                prop_assert!(model.state().held() <= most);
            }
            prop_assert_eq!(plan(&desired, &actual_of(&model), Order::AtOnce), vec![]);
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
            prop_assert_eq!(plan(&partly_desired, &partly_actual, Order::AtOnce), plan(&desired, &actual_of(&model), Order::AtOnce));
        }
    }
}
