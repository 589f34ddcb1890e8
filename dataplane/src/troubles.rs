//! What goes wrong beside the router, in threads that keep files and sockets: told
//! among its alarms for as long as it lasts. No packet waits for any of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Troubles by what has them; clones are of the same list.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Troubles {
    fn list(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `what` has this trouble from now on. True where it had none.
    pub fn begin(&self, what: &'static str, text: String) -> bool {
        self.list().insert(what, text).is_none()
    }

    /// `what` has none any more. True where it had one.
    pub fn end(&self, what: &'static str) -> bool {
        self.list().remove(what).is_some()
    }

    /// All, in words.
    pub fn texts(&self) -> Vec<String> {
        self.list().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_lasts_until_it_ends_and_is_there_once() {
        let troubles = Troubles::default();
        let same = troubles.clone();
        assert!(troubles.begin("state", "first".into()));
        assert!(!same.begin("state", "second".into()));
        assert!(same.begin("control", "another".into()));
        assert_eq!(troubles.texts(), ["another", "second"]);
        assert!(troubles.end("state") && !same.end("state"));
        assert_eq!(same.texts(), ["another"]);
    }
}
