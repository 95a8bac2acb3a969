//! docs/services.md: which test covers which number of the Service semantics, which of upstream's end-to-end tests and which of
//! its table tests, and why where none does. It is made of docs/services.tsv, docs/e2e.tsv and docs/tables.tsv and of the names
//! of all tests; what is in neither is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use expect_test::expect_file;

/// S1 to S80.
const NUMBERS: std::ops::RangeInclusive<u32> = 1..=80;
/// Upstream's end-to-end tests, E1 to E101, without the two numbers that were left free.
const END_TO_END: std::ops::RangeInclusive<u32> = 1..=101;
const LEFT_FREE: [u32; 2] = [13, 24];
/// Such a reason must go with the first test.
const NOT_YET: &str = "not built yet";

/// By letter and number: (file, test).
type Tests = BTreeMap<(char, u32), Vec<(String, String)>>;
/// By name: file.
type Functions = BTreeMap<String, String>;

struct Entry {
    title: String,
    /// What no test covers, and why.
    exception: Option<String>,
}

/// A table test of upstream's, and what does the same here.
struct Table {
    title: String,
    tests: Vec<String>,
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

/// (file, name) of every function, tests among them.
fn functions() -> Vec<(String, String)> {
    let mut functions = Vec::new();
    for file in ["crates", "src", "tests"].iter().flat_map(|folder| rust_files(&root().join(folder))) {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let file = file.strip_prefix(root()).expect("a file of ours").display().to_string();
        functions.extend(text.lines().filter_map(function).map(|name| (file.clone(), name.into())));
    }
    functions
}

fn by_number(functions: &[(String, String)]) -> Tests {
    let mut tests = Tests::new();
    for (file, name) in functions {
        for number in numbers(name) {
            tests.entry(number).or_default().push((file.clone(), name.clone()));
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

/// The lines of a file in docs/, by columns; a column that is missing is empty.
fn rows(name: &str) -> Vec<[String; 3]> {
    let text =
        std::fs::read_to_string(root().join("docs").join(name)).unwrap_or_else(|_| panic!("docs/{name}"));
    let row = |line: &str| {
        let mut columns = line.split('\t').map(str::to_owned);
        let row = [(); 3].map(|()| columns.next().unwrap_or_default());
        assert!(!row[0].is_empty() && columns.next().is_none(), "docs/{name}: {line:?}");
        row
    };
    text.lines().map(row).collect()
}

/// `number<TAB>title`, and where something is not covered `<TAB>reason`.
fn entries(name: &str) -> BTreeMap<u32, Entry> {
    let entry = |[number, title, reason]: [String; 3]| {
        let number = number.parse().unwrap_or_else(|_| panic!("docs/{name}: {number:?}"));
        assert!(!title.is_empty(), "docs/{name}: {number} has no title");
        (number, Entry { title, exception: Some(reason).filter(|reason| !reason.is_empty()) })
    };
    rows(name).into_iter().map(entry).collect()
}

/// `title<TAB>tests, by spaces<TAB>reason`, one of the two.
fn tables() -> Vec<Table> {
    let table = |[title, tests, reason]: [String; 3]| Table {
        title,
        tests: tests.split_whitespace().map(str::to_owned).collect(),
        exception: Some(reason).filter(|reason| !reason.is_empty()),
    };
    rows("tables.tsv").into_iter().map(table).collect()
}

fn document(
    entries: &BTreeMap<u32, Entry>,
    end_to_end: &BTreeMap<u32, Entry>,
    tables: &[Table],
    tests: &Tests,
    functions: &Functions,
) -> String {
    let mut text = String::from(
        "# Service semantics, and what tests them\n\n\
         Generated from services.tsv, e2e.tsv, tables.tsv and the names of all tests by\n\
         `UPDATE_EXPECT=1 cargo test --test scenarios coverage`. The numbers are those of the project's specification of\n\
         Service semantics.\n",
    );
    numbered(&mut text, 's', entries, tests);
    text += "\n# Upstream's end-to-end tests\n\nBy the numbers of section 4.1 of that specification.\n";
    numbered(&mut text, 'e', end_to_end, tests);
    text += "\n# Upstream's table tests\n\n\
             What its nftables proxier is tested for without packets (section 4.2), and what tests the same here.\n";
    for table in tables {
        let _ = writeln!(text, "\n**{}**\n", table.title);
        for name in &table.tests {
            let file = functions.get(name).map_or("", String::as_str);
            let _ = writeln!(text, "- `{name}` ([{file}](../{file}))");
        }
        if let Some(reason) = &table.exception {
            let _ = writeln!(text, "- none: {reason}");
        }
    }
    text
}

fn numbered(text: &mut String, letter: char, entries: &BTreeMap<u32, Entry>, tests: &Tests) {
    for (number, entry) in entries {
        let _ = writeln!(text, "\n**{}{number}** {}\n", letter.to_ascii_uppercase(), entry.title);
        for (file, name) in tests.get(&(letter, *number)).into_iter().flatten() {
            let _ = writeln!(text, "- `{name}` ([{file}](../{file}))");
        }
        if let Some(reason) = &entry.exception {
            let _ = writeln!(text, "- not covered: {reason}");
        }
    }
}

/// What is wrong with the entries of one letter.
fn unproved(
    letter: char,
    numbers: &BTreeSet<u32>,
    entries: &BTreeMap<u32, Entry>,
    tests: &Tests,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for number in numbers {
        let tested = tests.contains_key(&(letter, *number));
        match entries.get(number).map(|entry| entry.exception.as_deref()) {
            None => wrong.push(format!("{letter}{number} is missing in docs/")),
            Some(None) if !tested => {
                wrong.push(format!("{letter}{number} has no test by its name, and no reason in docs/"));
            }
            Some(Some(NOT_YET)) if tested => {
                wrong.push(format!("{letter}{number} has tests now: docs/ says \"{NOT_YET}\""));
            }
            Some(_) => {}
        }
    }
    wrong.extend(entries.keys().filter(|n| !numbers.contains(n)).map(|n| format!("there is no {letter}{n}")));
    wrong
}

#[test]
fn coverage_of_service_semantics() {
    let (functions, tables) = (functions(), tables());
    let tests = by_number(&functions);
    let functions: Functions = functions.into_iter().map(|(file, name)| (name, file)).collect();
    let (semantics, end_to_end) = (entries("services.tsv"), entries("e2e.tsv"));
    let upstream: BTreeSet<u32> = END_TO_END.filter(|number| !LEFT_FREE.contains(number)).collect();
    let mut wrong = unproved('s', &NUMBERS.collect(), &semantics, &tests);
    wrong.extend(unproved('e', &upstream, &end_to_end, &tests));
    for table in &tables {
        if table.tests.is_empty() == table.exception.is_none() {
            wrong.push(format!("docs/tables.tsv: {:?} has neither tests nor a reason, or both", table.title));
        }
        let unknown = table.tests.iter().filter(|name| !functions.contains_key(*name));
        wrong.extend(unknown.map(|name| format!("docs/tables.tsv: there is no test {name}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let text = document(&semantics, &end_to_end, &tables, &tests, &functions);
    expect_file![root().join("docs/services.md")].assert_eq(&text);
}

#[test]
fn numbers_stand_before_the_words() {
    assert_eq!(numbers("s31_s06_words_of_5_s7"), [('s', 31), ('s', 6)]);
    assert_eq!(numbers("a_s7"), []);
    assert_eq!(function("    async fn e33_refused() {"), Some("e33_refused"));
    assert_eq!(function("let fn_s1_x = 3;"), None);
}
