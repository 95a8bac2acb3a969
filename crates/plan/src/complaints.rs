//! What is wrong in the cluster's objects, said once: when it appears, and again when it was mended and came back.

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::{ObjectId, Problem};

/// Sentences about one object at a time. An EndpointSlice may have a thousand wrong addresses.
const MOST: usize = 8;

/// Remembers what was said, so that updates of other objects, or of other fields, are no occasion to say it again.
#[derive(Clone, Debug, Default)]
pub struct Complaints {
    said: BTreeMap<ObjectId, BTreeSet<Said>>,
}

/// A problem without its place in a list: entries before it come and go.
type Said = (String, &'static str, String);

impl Complaints {
    /// `problems` is all that is wrong now. Returns what is to be said, each with its reason.
    pub fn about<'a>(&mut self, problems: impl Iterator<Item = &'a Problem>) -> Vec<(&'static str, String)> {
        let mut now: BTreeMap<ObjectId, BTreeSet<Said>> = BTreeMap::new();
        let mut new: BTreeMap<&ObjectId, Vec<&Problem>> = BTreeMap::new();
        for problem in problems {
            let said = (without_indices(&problem.field), problem.reason, problem.message.clone());
            let is_new = self.said.get(&problem.object).is_none_or(|before| !before.contains(&said));
            if now.entry(problem.object.clone()).or_default().insert(said) && is_new {
                new.entry(&problem.object).or_default().push(problem);
            }
        }
        self.said = now;
        new.values().flat_map(|problems| sentences(problems)).collect()
    }
}

fn sentences(problems: &[&Problem]) -> Vec<(&'static str, String)> {
    let said = problems.iter().take(MOST).map(|problem| (problem.reason, problem.to_string()));
    let rest = problems.get(MOST).map(|first| {
        let more = problems.len() - MOST;
        (first.reason, format!("{}: {}: and {more} more of this object", first.object, first.field))
    });
    said.chain(rest).collect()
}

/// `endpoints[3].addresses[0]` becomes `endpoints[].addresses[]`; names in brackets stay.
fn without_indices(field: &str) -> String {
    let mut parts = field.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "[" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(object: &str, field: &str, message: &str) -> Problem {
        let object = ObjectId::cluster("Node", object);
        Problem { object, field: field.into(), reason: "Invalid", message: message.into() }
    }

    fn said(complaints: &mut Complaints, problems: &[Problem]) -> Vec<String> {
        complaints.about(problems.iter()).into_iter().map(|(_, sentence)| sentence).collect()
    }

    #[test]
    fn s14_each_is_said_once_until_it_was_mended() {
        let mut complaints = Complaints::default();
        let (a, b) = (problem("a", "x[1].y[0]", "\"?\" is wrong"), problem("b", "z", "is wrong"));
        assert_eq!(said(&mut complaints, std::slice::from_ref(&a)), ["Node a: x[1].y[0]: \"?\" is wrong"]);
        assert!(said(&mut complaints, std::slice::from_ref(&a)).is_empty());
        assert_eq!(said(&mut complaints, &[a.clone(), b.clone()]), ["Node b: z: is wrong"]);
        let moved = problem("a", "x[7].y[0]", "\"?\" is wrong");
        assert!(said(&mut complaints, &[moved.clone(), b.clone()]).is_empty(), "another place in the list");
        assert!(said(&mut complaints, std::slice::from_ref(&b)).is_empty());
        assert_eq!(said(&mut complaints, &[moved, b]), ["Node a: x[7].y[0]: \"?\" is wrong"]);
    }

    #[test]
    fn a_thousand_of_one_object_are_few_sentences() {
        let problems: Vec<Problem> =
            (0..1000).map(|n| problem("a", &format!("x[{n}]"), &format!("{n} is wrong"))).collect();
        let mut complaints = Complaints::default();
        let sentences = said(&mut complaints, &problems);
        assert_eq!(sentences.len(), MOST + 1);
        assert_eq!(sentences[MOST], "Node a: x[8]: and 992 more of this object");
        assert!(said(&mut complaints, &problems).is_empty());
    }

    #[test]
    fn names_in_brackets_are_no_places() {
        assert_eq!(
            without_indices("metadata.annotations[portolan.dev/ips]"),
            "metadata.annotations[portolan.dev/ips]"
        );
        assert_eq!(without_indices("a[12].b[0]"), "a[].b[]");
    }
}
