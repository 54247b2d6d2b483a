//! Whatever comes in whatever order.

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Put(u8, u64),
    Forget(u8),
    Look(u8),
    Collect,
    /// Everything in this process ends.
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0u8..12, 1..40 * KIB).prop_map(|(seed, length)| Act::Put(seed, length)),
        3 => (0u8..12).prop_map(Act::Forget),
        3 => (0u8..12).prop_map(Act::Look),
        1 => Just(Act::Collect),
        1 => Just(Act::Crash),
    ];
    proptest::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_comes_in_whatever_order_what_is_there_is_right(acts in acts()) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut model = BTreeMap::new();
        for act in acts {
            match act {
                Act::Put(seed, length) => {
                    store.forget(&[task(seed)]).unwrap();
                    put(&store, seed, length);
                    model.insert(seed, length);
                }
                Act::Forget(seed) => {
                    let gone = store.forget(&[task(seed)]).unwrap();
                    prop_assert_eq!(gone.len(), usize::from(model.remove(&seed).is_some()));
                }
                Act::Look(seed) => {
                    let expected = model.get(&seed).map(|length| bytes(seed, *length));
                    prop_assert!(get(&store, &task(seed)) == expected);
                }
                Act::Collect => store.collect(std::time::SystemTime::now()).unwrap(),
                Act::Crash => {
                    let there = tempfile::tempdir().unwrap();
                    copy(dir.path(), there.path());
                    store = open(there.path());
                    dir = there;
                }
            }
            let takes: u64 = model.values().map(|length: &u64| length.next_multiple_of(4096)).sum();
            prop_assert_eq!(store.used(), takes);
        }
        for (seed, length) in &model {
            prop_assert!(get(&store, &task(*seed)) == Some(bytes(*seed, *length)));
        }
        drop(store);
        // The segment that is written to stays when the last object in it goes; the next start takes it away.
        let found = check(dir.path(), false).unwrap().findings;
        prop_assert!(found.len() <= 1 && found.iter().all(|finding| finding.left_over), "{found:?}");
    }
}
