//! Services whose annotations for Peak make no sense.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::ObjectId;
use crate::validate::{ANSWERS_FIELD, Problem};

/// What is wrong with each of them, so that it is told once, not with each change of the service.
#[derive(Debug, Default)]
pub(super) struct BadAnnotations {
    messages: HashMap<ObjectId, Box<str>>,
    count: Arc<AtomicUsize>,
}

impl BadAnnotations {
    /// Takes notice of what is wrong with an object now. Says whether there is something new to tell of its annotation.
    pub(super) fn note(&mut self, id: &ObjectId, problems: &[Problem]) -> bool {
        let wrong = problems.iter().find(|problem| is_ours(&problem.field));
        let is_news = match wrong.map(|problem| &*problem.message) {
            Some(value) => self
                .messages
                .insert(id.clone(), value.into())
                .is_none_or(|before| *before != *value),
            None => {
                self.messages.remove(id);
                false
            }
        };
        self.count.store(self.messages.len(), Ordering::Relaxed);
        is_news
    }

    /// How many services have one, to be read by others.
    pub(super) fn count(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.count)
    }
}

/// Whether a problem is with what somebody has said to Peak alone.
pub(super) fn is_ours(field: &str) -> bool {
    field == ANSWERS_FIELD
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::{from_value, json};

    use super::*;
    use crate::{objects::ANSWERS_ANNOTATION, validate};

    #[test]
    fn each_bad_value_is_news_once() {
        let service = |value: Option<&str>| {
            let annotations = value.map(|value| json!({ANSWERS_ANNOTATION: value}));
            let metadata = json!({"name": "web", "annotations": annotations});
            let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata});
            validate::service(&from_value::<Service>(service).unwrap())
        };
        let (web, db) = (
            ObjectId::service("shop".into(), "web".into()),
            ObjectId::service("shop".into(), "db".into()),
        );
        let mut bad = BadAnnotations::default();
        let count = bad.count();
        for (id, value, is_news, expected) in [
            (&web, Some("two"), true, 1),
            (&web, Some("two"), false, 1),
            (&db, Some("two"), true, 2),
            (&web, Some("0"), true, 2),
            (&web, Some("2"), false, 1),
            (&web, Some("0"), true, 2),
            (&web, None, false, 1),
        ] {
            assert_eq!(bad.note(id, &service(value)), is_news, "{id} {value:?}");
            assert_eq!(count.load(Ordering::Relaxed), expected, "{id} {value:?}");
        }
        assert!(!bad.note(&db, &[]));
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}
