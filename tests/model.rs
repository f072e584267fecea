//! The store against a `BTreeMap`, with reopening as an operation: whatever is done, both say the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder::{Collection, Error, Store};
use proptest::prelude::*;

/// Collections of bytes, and one that is a type from the moment it is opened as one.
const COLLECTIONS: [&str; 3] = ["artist", "Ωmega .Con", "n"];
const TYPED: usize = 2;

type Model = BTreeMap<(usize, String), Vec<u8>>;

#[derive(Debug, Clone)]
enum Op {
    Put(usize, String, Vec<u8>),
    Delete(usize, String),
    DeleteAll(usize),
    OpenAsType,
    PutTyped(String, u32),
    DeleteTyped(String),
    Flush,
    Reopen,
    DropAndReopen,
}

fn collection(index: usize) -> &'static str {
    COLLECTIONS[index]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let member = prop_oneof![
        4 => "[a-c]{1,2}",
        1 => Just("A".to_owned()),
        1 => Just("../a/b".to_owned()),
        1 => "\\PC{1,40}",
        1 => "a{120,130}",
    ];
    let value = prop_oneof![
        2 => any::<u32>().prop_map(|number| number.to_string().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
    ];
    let op = prop_oneof![
        12 => (0..COLLECTIONS.len(), member.clone(), value).prop_map(|(c, m, v)| Op::Put(c, m, v)),
        5 => (0..COLLECTIONS.len(), member.clone()).prop_map(|(c, m)| Op::Delete(c, m)),
        1 => (0..COLLECTIONS.len()).prop_map(Op::DeleteAll),
        1 => Just(Op::OpenAsType),
        4 => (member.clone(), any::<u32>()).prop_map(|(m, v)| Op::PutTyped(m, v)),
        2 => member.prop_map(Op::DeleteTyped),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::DropAndReopen),
    ];
    proptest::collection::vec(op, 1..60)
}

fn number(bytes: &[u8]) -> Option<u32> {
    serde_json::from_slice(bytes).ok()
}

struct Run {
    dir: tempfile::TempDir,
    store: Store,
    typed: Option<Collection<u32>>,
    model: Model,
}

impl Run {
    fn new() -> Run {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Run { dir, store, typed: None, model: Model::new() }
    }

    fn old(&self, collection: usize, member: &str) -> Option<Vec<u8>> {
        self.model.get(&(collection, member.to_owned())).cloned()
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Put(c, member, value) => {
                let put = self.store.put(format!("{}/{member}", collection(c)), &value);
                if c == TYPED && self.typed.is_some() && number(&value).is_none() {
                    assert!(matches!(put, Err(Error::Codec { action: "decode", .. })), "{put:?}");
                    return;
                }
                assert_eq!(put.unwrap().map(Vec::from), self.old(c, &member));
                // A typed collection shows a value as its codec writes it.
                let shown = match number(&value) {
                    Some(number) if c == TYPED && self.typed.is_some() => number.to_string().into_bytes(),
                    _ => value,
                };
                self.model.insert((c, member), shown);
            }
            Op::Delete(c, member) => {
                let deleted = self.store.delete(format!("{}/{member}", collection(c))).unwrap();
                assert_eq!(deleted.map(Vec::from), self.model.remove(&(c, member)));
            }
            Op::DeleteAll(c) => {
                let before = self.model.len();
                self.model.retain(|(owner, _), _| *owner != c);
                assert_eq!(self.store.delete_all(collection(c)).unwrap(), before - self.model.len());
            }
            Op::OpenAsType => self.open_as_type(),
            Op::PutTyped(member, value) => {
                if let Some(typed) = &self.typed {
                    let old = typed.put(&member, value).unwrap().map(|old| *old);
                    assert_eq!(old, self.old(TYPED, &member).and_then(|old| number(&old)));
                    self.model.insert((TYPED, member), value.to_string().into_bytes());
                }
            }
            Op::DeleteTyped(member) => {
                if let Some(typed) = &self.typed {
                    let old = typed.delete(&member).unwrap().map(|old| *old);
                    assert_eq!(old, self.model.remove(&(TYPED, member)).and_then(|old| number(&old)));
                }
            }
            Op::Flush => self.store.flush().unwrap(),
            Op::Reopen => {
                let report = self.store.close().unwrap();
                assert_eq!(report.members, self.model.len());
                self.reopen();
            }
            Op::DropAndReopen => {
                self.typed = None;
                self.store = Store::in_memory();
                self.reopen();
            }
        }
        self.agree();
    }

    fn open_as_type(&mut self) {
        let bad = self.model.iter().filter(|((c, _), value)| *c == TYPED && number(value).is_none());
        let mut bad: Vec<&str> = bad.map(|((_, member), _)| member.as_str()).collect();
        bad.sort_unstable();
        match self.store.collection::<u32>(collection(TYPED)) {
            Ok(typed) => {
                assert!(bad.is_empty(), "{bad:?}");
                self.typed = Some(typed);
                for ((c, _), value) in &mut self.model {
                    if let Some(number) = number(value).filter(|_| *c == TYPED) {
                        *value = number.to_string().into_bytes();
                    }
                }
            }
            Err(Error::Codec { members, .. }) => {
                assert_eq!(members.iter().map(|(member, _)| &**member).collect::<Vec<_>>(), bad);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn reopen(&mut self) {
        self.typed = None;
        self.store = Store::open(self.dir.path().join("store")).unwrap();
        let report = self.store.load_report();
        assert_eq!((report.members, report.quarantined.len()), (self.model.len(), 0));
    }

    fn agree(&self) {
        for c in 0..COLLECTIONS.len() {
            let expected: Vec<(&str, &[u8])> = self
                .model
                .iter()
                .filter(|((owner, _), _)| *owner == c)
                .map(|((_, member), value)| (member.as_str(), value.as_slice()))
                .collect();
            let mut all = self.store.get_all(collection(c)).unwrap();
            all.sort();
            assert_eq!(all.iter().map(|(member, value)| (&**member, &**value)).collect::<Vec<_>>(), expected);
            let mut names = self.store.members(collection(c)).unwrap();
            names.sort();
            assert_eq!(names, expected.iter().map(|(member, _)| *member).collect::<Vec<_>>());
            assert_eq!(self.store.len(collection(c)).unwrap(), expected.len());
            assert_eq!(self.store.iter(collection(c)).unwrap().count(), expected.len());
            for (member, value) in expected {
                let key = format!("{}/{member}", collection(c));
                assert_eq!(self.store.get(&key).unwrap().unwrap(), value);
                assert!(self.store.contains(&key).unwrap());
            }
            assert!(self.store.get(format!("{}/never put", collection(c))).unwrap().is_none());
        }
        if let Some(typed) = &self.typed {
            let mut all: Vec<(String, u32)> =
                typed.get_all().into_iter().map(|(m, v): (_, Arc<u32>)| (m.into(), *v)).collect();
            all.sort();
            let of_type = self.model.iter().filter(|((c, _), _)| *c == TYPED);
            let expected: Vec<(String, u32)> =
                of_type.filter_map(|((_, member), value)| Some((member.clone(), number(value)?))).collect();
            assert_eq!(all, expected);
        }
        assert_eq!(self.store.stats().members, self.model.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_says_what_a_map_says(ops in ops()) {
        let mut run = Run::new();
        ops.into_iter().for_each(|op| run.step(op));
        run.step(Op::Reopen);
    }
}
