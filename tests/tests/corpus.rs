//! The kept inputs of the fuzz targets, through the functions that those run: what once broke a promise does not break it again.
//!
//! A target is a file in `tests/fuzz/fuzz_targets`, a folder of inputs in `tests/fuzz/corpus`, and a line here.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use std::{collections::BTreeMap, fs, panic, path::Path};

use redirect_common::testkit::properties;
use redirect_relay::properties as smtp;

type Check = fn(&[u8]);

/// Every target.
const TARGETS: [(&str, Check); 7] = [
    ("handle", properties::handle),
    ("icmp", properties::icmp),
    ("parse", properties::parse),
    ("smtp_chunks", smtp::chunks),
    ("smtp_commands", smtp::command),
    ("smtp_data", smtp::body),
    ("smtp_replies", smtp::reply),
];

/// What a clone of the project has to carry.
const BYTES_MAX: usize = 500_000;

fn names(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut names: Vec<_> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn kept_inputs_break_no_promise() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let targets: BTreeMap<_, _> = TARGETS.into();
    assert_eq!(names(&fuzz.join("fuzz_targets")), targets.keys().copied().collect::<Vec<_>>());
    assert_eq!(names(&fuzz.join("corpus")), targets.keys().copied().collect::<Vec<_>>());
    let mut bytes = 0;
    for (target, check) in targets {
        let folder = fuzz.join("corpus").join(target);
        let inputs = names(&folder);
        assert!(inputs.len() > 20, "{target}: {} inputs", inputs.len());
        for name in inputs {
            let input = fs::read(folder.join(&name)).unwrap();
            bytes += input.len();
            // The panic's own message has been printed by then.
            assert!(panic::catch_unwind(|| check(&input)).is_ok(), "{target} of {name}");
        }
    }
    assert!(bytes < BYTES_MAX, "{bytes} bytes of inputs are kept");
}
