//! docs/services.md: which test covers which number of the Service semantics, and why where none does. It is made of
//! docs/services.tsv and of the names of all tests; a number in neither is an error.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use expect_test::expect_file;

/// S1 to S80.
const NUMBERS: std::ops::RangeInclusive<u32> = 1..=80;
/// Upstream's end-to-end tests, E1 to E104, without the two numbers that were left free.
const END_TO_END: std::ops::RangeInclusive<u32> = 1..=104;
const LEFT_FREE: [u32; 2] = [13, 24];
/// Those that ask the API server and its controllers only, with no packet of ours in them.
const NO_PACKETS: [u32; 13] = [1, 19, 20, 21, 44, 47, 48, 49, 50, 52, 53, 56, 77];
/// Such a reason must go with the first test.
const NOT_YET: &str = "not built yet";

/// By letter and number: (file, test).
type Tests = BTreeMap<(char, u32), Vec<(String, String)>>;

struct Entry {
    title: String,
    /// What no test covers, and why.
    exception: Option<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `s31_s32_words`: both numbers.
fn numbers(name: &str) -> Vec<(char, u32)> {
    let number = |word: &str| {
        let letter = word.chars().next()?;
        Some((letter, word[letter.len_utf8()..].parse().ok()?))
    };
    name.split('_').map_while(number).collect()
}

fn tests() -> Tests {
    let mut tests = Tests::new();
    for folder in ["crates", "src", "tests"] {
        for file in rust_files(&root().join(folder)) {
            let text = std::fs::read_to_string(&file).expect("a source file");
            let file = file.strip_prefix(root()).expect("a file of ours").display().to_string();
            for name in text.lines().filter_map(function) {
                for number in numbers(name) {
                    tests.entry(number).or_default().push((file.clone(), name.into()));
                }
            }
        }
    }
    tests
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let after = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))?;
    after.split('(').next()
}

/// In order of path.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    let built = |path: &PathBuf| path.ends_with("target");
    let inside = |path: PathBuf| match path.is_dir() {
        true => rust_files(&path),
        false if path.extension().is_some_and(|extension| extension == "rs") => vec![path],
        false => vec![],
    };
    entries.into_iter().filter(|path| !built(path)).flat_map(inside).collect()
}

/// `number<TAB>title`, and where something is not covered `<TAB>reason`.
fn entries() -> BTreeMap<u32, Entry> {
    let text = std::fs::read_to_string(root().join("docs/services.tsv")).expect("docs/services.tsv");
    let entry = |line: &str| {
        let mut columns = line.split('\t');
        let number = columns.next().and_then(|number| number.parse().ok());
        let title = columns.next().unwrap_or_default().to_owned();
        let exception = columns.next().filter(|reason| !reason.is_empty()).map(str::to_owned);
        let read = number.filter(|_| !title.is_empty() && columns.next().is_none());
        (read.unwrap_or_else(|| panic!("docs/services.tsv: {line:?}")), Entry { title, exception })
    };
    text.lines().map(entry).collect()
}

fn document(entries: &BTreeMap<u32, Entry>, tests: &Tests) -> String {
    let mut text = String::from(
        "# Service semantics, and what tests them\n\n\
         Generated from services.tsv and the names of all tests by\n\
         `UPDATE_EXPECT=1 cargo test --test scenarios coverage`. The numbers are those of the project's specification of\n\
         Service semantics.\n",
    );
    for (number, entry) in entries {
        let _ = writeln!(text, "\n**S{number}** {}\n", entry.title);
        for (file, name) in tests.get(&('s', *number)).into_iter().flatten() {
            let _ = writeln!(text, "- `{name}` ([{file}](../{file}))");
        }
        if let Some(reason) = &entry.exception {
            let _ = writeln!(text, "- not covered: {reason}");
        }
    }
    text + &end_to_end(tests)
}

/// Upstream's end-to-end tests of the data path, by number.
fn end_to_end(tests: &Tests) -> String {
    let mut text = String::from("\n# Upstream's end-to-end tests, in the lab\n\n");
    let of_packets = || END_TO_END.filter(|n| !LEFT_FREE.contains(n) && !NO_PACKETS.contains(n));
    for number in of_packets() {
        for (file, name) in tests.get(&('e', number)).into_iter().flatten() {
            let _ = writeln!(text, "- **E{number}** `{name}` ([{file}](../{file}))");
        }
    }
    let none: Vec<String> = of_packets()
        .filter(|number| !tests.contains_key(&('e', *number)))
        .map(|number| format!("E{number}"))
        .collect();
    let _ = writeln!(text, "\nNo test under its number yet: {}.", none.join(" "));
    text
}

#[test]
fn coverage_of_service_semantics() {
    let (entries, tests) = (entries(), tests());
    let mut wrong = Vec::new();
    for number in NUMBERS {
        let tested = tests.contains_key(&('s', number));
        match entries.get(&number).map(|entry| entry.exception.as_deref()) {
            None => wrong.push(format!("S{number} is missing in docs/services.tsv")),
            Some(None) if !tested => {
                wrong.push(format!("S{number} has no test by its name, and no reason in docs/services.tsv"));
            }
            Some(Some(NOT_YET)) if tested => {
                wrong.push(format!("S{number} has tests now: docs/services.tsv says \"{NOT_YET}\""));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        entries.keys().eq(NUMBERS.collect::<Vec<_>>().iter()),
        "numbers that are none in docs/services.tsv"
    );
    expect_file![root().join("docs/services.md")].assert_eq(&document(&entries, &tests));
}

#[test]
fn numbers_stand_before_the_words() {
    assert_eq!(numbers("s31_s06_words_of_5_s7"), [('s', 31), ('s', 6)]);
    assert_eq!(numbers("a_s7"), []);
    assert_eq!(function("    async fn e33_refused() {"), Some("e33_refused"));
    assert_eq!(function("let fn_s1_x = 3;"), None);
}
