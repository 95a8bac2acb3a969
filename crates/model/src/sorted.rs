//! Maps and sets that are made once and then only read: sorted, and without room to grow. A cluster has a few of each for every
//! Service, nearly all of one or two entries, for which a tree would take ten times the memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

/// Entries in order of their keys, each key once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SortedMap<K, V>(Box<[(K, V)]>);

/// Values in order, each once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SortedSet<T>(Box<[T]>);

impl<K: Ord, V> SortedMap<K, V> {
    pub fn new() -> Self {
        SortedMap::default()
    }

    /// Of several entries with one key the first counts.
    pub fn of_first(mut entries: Vec<(K, V)>) -> Self {
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(a, _), (b, _)| a == b);
        SortedMap(entries.into())
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(|other| other.cmp(key))
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Puts equal keys in the place of these: shared ones, for example.
    pub fn replace_keys(&mut self, mut equal: impl FnMut(&mut K)) {
        self.0.iter_mut().for_each(|(key, _)| equal(key));
        debug_assert!(self.0.is_sorted_by(|(a, _), (b, _)| a < b));
    }

    fn find(&self, order: impl Fn(&K) -> std::cmp::Ordering) -> Option<&V> {
        self.0.binary_search_by(|(key, _)| order(key)).ok().map(|at| &self.0[at].1)
    }
}

impl<V> SortedMap<crate::Name, V> {
    pub fn at(&self, key: &str) -> Option<&V> {
        self.find(|other| (**other).cmp(key))
    }
}

impl<K, V> SortedMap<K, V> {
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> + Clone {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Ord> SortedSet<T> {
    pub fn contains(&self, value: &T) -> bool {
        self.0.binary_search(value).is_ok()
    }

    /// What `other` has not.
    pub fn difference<'a>(&'a self, other: &'a SortedSet<T>) -> impl Iterator<Item = &'a T> {
        self.0.iter().filter(|value| !other.contains(value))
    }

    /// What only one of the two has.
    pub fn symmetric_difference<'a>(&'a self, other: &'a SortedSet<T>) -> impl Iterator<Item = &'a T> {
        self.difference(other).chain(other.difference(self))
    }
}

impl<T> Deref for SortedSet<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// Of several entries with one key the last counts, as in a tree.
impl<K: Ord, V> FromIterator<(K, V)> for SortedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        entries.into_iter().collect::<BTreeMap<K, V>>().into()
    }
}

impl<K: Ord, V> From<BTreeMap<K, V>> for SortedMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        SortedMap(map.into_iter().collect())
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SortedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<T: Ord> FromIterator<T> for SortedSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values: Vec<T> = values.into_iter().collect();
        values.sort();
        values.dedup();
        SortedSet(values.into())
    }
}

impl<T: Ord> From<BTreeSet<T>> for SortedSet<T> {
    fn from(set: BTreeSet<T>) -> Self {
        SortedSet(set.into_iter().collect())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for SortedSet<T> {
    fn from(values: [T; N]) -> Self {
        values.into_iter().collect()
    }
}

impl<'a, K, V> IntoIterator for &'a SortedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, (K, V)>, fn(&'a (K, V)) -> (&'a K, &'a V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl<'a, T> IntoIterator for &'a SortedSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        SortedMap(Box::default())
    }
}

impl<T> Default for SortedSet<T> {
    fn default() -> Self {
        SortedSet(Box::default())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SortedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for SortedSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sorted_map_is_what_a_tree_would_be() {
        let entries = [(3, 'c'), (1, 'a'), (3, 'd'), (2, 'b')];
        let map: SortedMap<i32, char> = entries.into_iter().collect();
        assert_eq!(map.iter().collect::<Vec<_>>(), [(&1, &'a'), (&2, &'b'), (&3, &'d')]);
        assert_eq!((map.get(&3), map.get(&4), map.contains_key(&1)), (Some(&'d'), None, true));
        let first = SortedMap::of_first(entries.to_vec());
        assert_eq!(first.iter().collect::<Vec<_>>(), [(&1, &'a'), (&2, &'b'), (&3, &'c')]);
        assert_eq!(SortedMap::from([(crate::Name::from("a"), 1)]).at("a"), Some(&1));
    }

    #[test]
    fn a_sorted_set_is_what_a_tree_would_be() {
        let (a, b) = (SortedSet::from([3, 1, 3, 2]), SortedSet::from([2, 5]));
        assert_eq!(*a, [1, 2, 3]);
        assert!(a.contains(&3) && !a.contains(&5));
        assert_eq!(a.difference(&b).collect::<Vec<_>>(), [&1, &3]);
        assert_eq!(a.symmetric_difference(&b).collect::<Vec<_>>(), [&1, &3, &5]);
    }
}
