//! A manifest file's text: its documents, their objects, and what is wrong with them.

use std::{cell::OnceCell, collections::BTreeSet, fmt::Write, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::{Object, ObjectId};
use crate::{
    objects::is_label,
    pods,
    validate::{self, Problem, Severity},
};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// Its documents, in order; those without content count.
    pub(super) documents: Vec<Document>,
    pub(super) findings: Vec<Finding>,
    /// Other kinds of object, as `apiVersion kind`.
    pub(super) skipped: BTreeSet<String>,
}

/// One document: several entries if it is a `List`.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// The line on which it begins, from 1.
    pub(super) line: u64,
    pub(super) entries: Vec<Entry>,
}

/// A place at which a Service, an EndpointSlice or a Pod stands.
#[derive(Debug)]
pub(super) enum Entry {
    Good(ObjectId, Object),
    /// The object can't be used; known is at best which one was meant.
    Broken(Option<ObjectId>),
}

/// Something to tell about a place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// Which document, from 1.
    pub(super) document: usize,
    /// Which line of the file, from 1.
    pub(super) line: Option<u64>,
    pub(super) field: Option<String>,
    pub(super) message: String,
}

/// Reads a file's whole text. JSON is YAML.
pub(super) fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (index, (line, text)) in split(text).into_iter().enumerate() {
        let mut reader = Reader {
            number: index + 1,
            first_line: line,
            text,
            tree: OnceCell::new(),
            entries: Vec::new(),
            parsed: &mut parsed,
        };
        reader.read();
        let entries = reader.entries;
        parsed.documents.push(Document { line, entries });
    }
    parsed
}

/// The documents of a YAML stream, each with the number of its first line, from 1. No scalar may hold a line that
/// begins with a document marker (YAML 1.2, section 9.1.2), so that one broken document can't hide the next.
fn split(text: &str) -> Vec<(u64, &str)> {
    let is_marker = |line: &str, marker| {
        line.strip_prefix(marker)
            .is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace))
    };
    let (mut documents, mut start, mut first_line) = (Vec::new(), 0, 1);
    // Comments and directives in front of a `---` belong to the document that it begins.
    let (mut at, mut prologue) = (0, true);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        if is_marker(line, "---") {
            if !prologue {
                documents.push((first_line, &text[start..at]));
                (start, first_line) = (at, number);
            }
            prologue = false;
        } else if is_marker(line, "...") {
            let end = at + line.len();
            if !prologue {
                documents.push((first_line, &text[start..end]));
            }
            (start, first_line, prologue) = (end, number + 1, true);
        } else if !line.trim().is_empty() && !line.starts_with(['#', '%']) {
            prologue = false;
        }
        at += line.len();
    }
    if !prologue {
        documents.push((first_line, &text[start..]));
    }
    documents
}

/// Reads one document.
struct Reader<'a> {
    number: usize,
    first_line: u64,
    text: &'a str,
    tree: OnceCell<Option<Spanned<Tree>>>,
    entries: Vec<Entry>,
    parsed: &'a mut Parsed,
}

impl Reader<'_> {
    fn read(&mut self) {
        // Untyped first: Kubernetes, too, reads YAML as JSON, and wants a number in quotes where it wants a text.
        match from_yaml(self.text) {
            Ok(Value::Null) => {}
            Ok(value) => self.object("", value),
            Err(error) => {
                let line = error
                    .location()
                    .map(|location| self.first_line + location.line().saturating_sub(1));
                let message = error.without_snippet().to_string();
                self.entries.push(Entry::Broken(None));
                self.push(Severity::Error, line, None, message);
            }
        }
    }

    /// Reads one object, which stands at `path` (`items[0].`) of the document.
    fn object(&mut self, path: &str, value: Value) {
        let text = |field| value.get(field).and_then(Value::as_str);
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        for (field, found) in [("apiVersion", api_version), ("kind", kind)] {
            if found.is_none() {
                self.entries.push(Entry::Broken(None));
                return self.error(
                    format!("{path}{field}"),
                    "is missing: every Kubernetes object has one",
                );
            }
        }
        match (api_version.unwrap_or_default(), kind.unwrap_or_default()) {
            ("v1", "Service") => self.typed(
                path,
                value,
                Kind {
                    id: ObjectId::service,
                    object: |service: Service| Object::Service(Arc::new((&service).into())),
                    problems: validate::service,
                },
            ),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.typed(
                path,
                value,
                Kind {
                    id: ObjectId::endpoint_slice,
                    object: |slice: EndpointSlice| Object::EndpointSlice(Arc::new((&slice).into())),
                    problems: validate::endpoint_slice,
                },
            ),
            ("v1", "Pod") => self.typed(
                path,
                value,
                Kind {
                    id: ObjectId::pod,
                    object: |pod: Pod| Object::Pod(pods::addresses(&pod)),
                    problems: validate::pod,
                },
            ),
            ("v1", "List") => self.list(path, value, None),
            ("v1", "ServiceList") => self.list(path, value, Some(("v1", "Service"))),
            ("v1", "PodList") => self.list(path, value, Some(("v1", "Pod"))),
            ("discovery.k8s.io/v1", "EndpointSliceList") => {
                self.list(path, value, Some(("discovery.k8s.io/v1", "EndpointSlice")));
            }
            (api_version, kind) => {
                self.parsed.skipped.insert(format!("{api_version} {kind}"));
            }
        }
    }

    /// Reads a list's items; in a list of one kind they need not repeat it.
    fn list(&mut self, path: &str, mut list: Value, kind: Option<(&str, &str)>) {
        let fields = list.as_object().into_iter().flat_map(Map::keys);
        let known = ["apiVersion", "kind", "metadata", "items"];
        let unknown: Vec<_> = fields
            .filter(|field| !known.contains(&field.as_str()))
            .cloned()
            .collect();
        for field in unknown {
            self.error(format!("{path}{field}"), "is an unknown field");
        }
        match list.get_mut("items").map(Value::take) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for (index, mut item) in items.into_iter().enumerate() {
                    if let (Some((api_version, kind)), Some(item)) = (kind, item.as_object_mut()) {
                        item.entry("apiVersion")
                            .or_insert_with(|| api_version.into());
                        item.entry("kind").or_insert_with(|| kind.into());
                    }
                    self.object(&format!("{path}items[{index}]."), item);
                }
            }
            Some(_) => {
                self.entries.push(Entry::Broken(None));
                self.error(format!("{path}items"), "is no sequence");
            }
        }
    }

    fn typed<T: DeserializeOwned>(&mut self, path: &str, value: Value, kind: Kind<T>) {
        let id = identity(&value, kind.id);
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
        let read =
            serde_ignored::deserialize(deserializer, |field| unknown.push(field_path(&field)));
        let mut broken = !unknown.is_empty();
        for field in unknown {
            self.error(format!("{path}{field}"), "is an unknown field");
        }
        let object: Option<T> = match read {
            Ok(object) => Some(object),
            Err(error) => {
                let field = track.path().to_string();
                // A path of its own for the object as a whole.
                let field = if field == "." {
                    path.trim_end_matches('.').to_owned()
                } else {
                    format!("{path}{field}")
                };
                self.error(field, error.to_string());
                None
            }
        };
        if let Some(object) = &object {
            for Problem {
                severity,
                field,
                message,
            } in (kind.problems)(object)
            {
                broken |= severity == Severity::Error;
                let field = format!("{path}{field}");
                self.push(severity, self.line_of(&field), Some(field), message);
            }
        }
        self.entries.push(match (object, id) {
            (Some(object), Some(id)) if !broken => Entry::Good(id, (kind.object)(object)),
            (_, id) => Entry::Broken(id),
        });
    }

    fn error(&mut self, field: String, message: impl Into<String>) {
        self.push(
            Severity::Error,
            self.line_of(&field),
            Some(field).filter(|field| !field.is_empty()),
            message,
        );
    }

    fn push(
        &mut self,
        severity: Severity,
        line: Option<u64>,
        field: Option<String>,
        message: impl Into<String>,
    ) {
        let finding = Finding {
            severity,
            document: self.number,
            line,
            field,
            message: message.into(),
        };
        self.parsed.findings.push(finding);
    }

    /// The line of the file on which a field stands, or what is there of its path. The first problem reads the document
    /// once more, this time with locations: what has no problem doesn't pay for them.
    fn line_of(&self, field: &str) -> Option<u64> {
        let tree = self
            .tree
            .get_or_init(|| from_yaml(self.text).ok())
            .as_ref()?;
        let line = tree.value.line_of(field).unwrap_or(tree.referenced.line());
        Some(self.first_line + line.saturating_sub(1))
    }
}

/// Reads one document. A `List` of a whole cluster is large: the library's limits on depth and on aliases, which blow a
/// small text up, stay; those on plain size don't.
fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// How one kind of object is handled.
struct Kind<T> {
    id: fn(Box<str>, Box<str>) -> ObjectId,
    object: fn(T) -> Object,
    problems: fn(&T) -> Vec<Problem>,
}

/// Which object is meant, as far as its names are in order.
fn identity(value: &Value, id: fn(Box<str>, Box<str>) -> ObjectId) -> Option<ObjectId> {
    let metadata = value.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    let namespace = match metadata.get("namespace") {
        None | Some(Value::Null) => DEFAULT_NAMESPACE,
        Some(namespace) => namespace.as_str().filter(|namespace| is_label(namespace))?,
    };
    Some(id(namespace.into(), name.into()))
}

/// A field's path, written as in `spec.clusterIPs[1]`.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field_path(parent),
        Path::Seq { parent, index } => {
            let mut path = field_path(parent);
            let _ = write!(path, "[{index}]");
            path
        }
        Path::Map { parent, key } => match field_path(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
    }
}

/// A document with the lines of its fields.
enum Tree {
    Scalar,
    Sequence(Vec<Spanned<Tree>>),
    Mapping(Vec<(Spanned<String>, Spanned<Tree>)>),
}

impl Tree {
    /// The line of the field at `path`, or of the last part of the path that is there. Keys may hold dots.
    fn line_of(&self, path: &str) -> Option<u64> {
        match self {
            Self::Scalar => None,
            Self::Sequence(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                let rest = rest.strip_prefix('.').unwrap_or(rest);
                Some(item.value.line_of(rest).unwrap_or(item.referenced.line()))
            }
            Self::Mapping(fields) => fields.iter().find_map(|(key, value)| {
                let rest = path.strip_prefix(key.value.as_str())?;
                let rest = match rest.chars().next() {
                    None | Some('[') => rest,
                    Some('.') => &rest[1..],
                    Some(_) => return None,
                };
                Some(value.value.line_of(rest).unwrap_or(key.referenced.line()))
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML node")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Tree::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<Tree, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = mapping.next_entry()? {
            fields.push(field);
        }
        Ok(Tree::Mapping(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `document:line: field: message` of each finding.
    fn findings(text: &str) -> Vec<String> {
        let one = |finding: &Finding| {
            let (line, field) = (
                finding.line.unwrap_or(0),
                finding.field.as_deref().unwrap_or("-"),
            );
            format!("{}:{line}: {field}: {}", finding.document, finding.message)
        };
        parse(text).findings.iter().map(one).collect()
    }

    /// The good objects of each document, and `?` for a broken one.
    fn entries(parsed: &Parsed) -> Vec<Vec<String>> {
        let one = |entry: &Entry| match entry {
            Entry::Good(id, _) => id.to_string(),
            Entry::Broken(Some(id)) => format!("{id}?"),
            Entry::Broken(None) => "?".to_owned(),
        };
        parsed
            .documents
            .iter()
            .map(|document| document.entries.iter().map(one).collect())
            .collect()
    }

    const WEB: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  clusterIP: None
";

    const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels:
    kubernetes.io/service-name: web
addressType: IPv6
endpoints:
  - addresses: [\"fd00::1\"]
  - addresses:
      - fd00::2
    hostname: b
";

    #[test]
    fn documents_are_split_at_their_markers() {
        let lines = |text| {
            split(text)
                .into_iter()
                .map(|(line, _)| line)
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(""), [0; 0]);
        assert_eq!(lines("# a comment\n\n"), [0; 0]);
        assert_eq!(lines("a: 1"), [1]);
        assert_eq!(lines("---\na: 1\n---\nb: 1\n"), [1, 3]);
        assert_eq!(
            lines("# text\n%YAML 1.2\n---\na: 1\n...\n# more\n---\nb: 1\n"),
            [1, 6]
        );
        assert_eq!(lines("a: |\n  ---\n---x\n"), [1]);
        assert_eq!(lines("--- {a: 1}\r\n---\r\n"), [1, 2]);
        let whole: String = split("a: 1\n---\nb: 1\n...\nc: 1")
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        assert_eq!(whole, "a: 1\n---\nb: 1\n...\nc: 1");
    }

    #[test]
    fn good_documents_are_read() {
        let parsed = parse(&format!("{WEB}---\n{SLICE}"));
        assert_eq!(parsed.findings, []);
        assert_eq!(
            entries(&parsed),
            [["Service shop/web"], ["EndpointSlice default/web-1"]]
        );
    }

    #[test]
    fn json_and_lists_are_read() {
        let json = r#"{
	"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
		{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "None"}},
		{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "b"}, "spec": {"clusterIP": "None"}}]},
		{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": null}
	]
}"#;
        let parsed = parse(json);
        assert_eq!(parsed.findings, []);
        assert_eq!(
            entries(&parsed),
            [["Service default/a", "Service default/b"]]
        );
        let findings = findings("apiVersion: v1\nkind: List\nextra: 1\nitems:\n- kind: Service\n");
        let expected = [
            "1:3: extra: is an unknown field",
            "1:5: items[0].apiVersion: is missing: every Kubernetes object has one",
        ];
        assert_eq!(findings, expected);
    }

    #[test]
    fn other_kinds_are_skipped_and_named() {
        let parsed = parse(&format!(
            "apiVersion: apps/v1\nkind: Deployment\nodd: 1\n---\n{WEB}"
        ));
        assert_eq!(parsed.findings, []);
        assert_eq!(
            parsed.skipped.into_iter().collect::<Vec<_>>(),
            ["apps/v1 Deployment"]
        );
        assert_eq!(parsed.documents.len(), 2);
    }

    #[test]
    fn a_syntax_error_hides_no_other_document() {
        let text = format!("{WEB}---\nspec: [a\nb: {{\n---\n{SLICE}");
        let parsed = parse(&text);
        assert_eq!(
            entries(&parsed),
            [["Service shop/web"], ["?"], ["EndpointSlice default/web-1"]]
        );
        let [finding] = &parsed.findings[..] else {
            panic!("{:?}", parsed.findings)
        };
        assert_eq!((finding.severity, finding.document), (Severity::Error, 2));
        assert!((9..=12).contains(&finding.line.unwrap()), "{finding:?}");
    }

    #[test]
    fn fields_are_checked_where_they_stand() {
        let text = format!("---\n# a comment\n---\n{SLICE}");
        let cases = [
            (
                "fd00::2",
                "10.0.0.1",
                "2:14: endpoints[1].addresses[0]: \"10.0.0.1\" is not an IPv6 address",
            ),
            (
                "hostname: b",
                "hostname: B",
                "2:15: endpoints[1].hostname: \"B\" is no DNS label",
            ),
            (
                "hostname: b",
                "hostnam: b",
                "2:15: endpoints[1].hostnam: is an unknown field",
            ),
            (
                "hostname: b",
                "hostname: 1",
                "2:15: endpoints[1].hostname: invalid type: integer `1`, expected a string",
            ),
            (
                "service-name: web",
                "service-name: w.b",
                "2:9: metadata.labels.kubernetes.io/service-name: \"w.b\"",
            ),
            (
                "name: web-1",
                "title: web-1",
                "2:7: metadata.title: is an unknown field",
            ),
            (
                "addressType: IPv6",
                "addressType: IP",
                "2:10: addressType: \"IP\" is none of",
            ),
            (
                "[\"fd00::1\"]",
                "fd00::1",
                "2:12: endpoints[0].addresses: invalid type: string",
            ),
        ];
        for (good, bad, expected) in cases {
            let findings = findings(&text.replace(good, bad));
            assert!(findings[0].starts_with(expected), "{bad}: {findings:?}");
        }
    }

    #[test]
    fn a_broken_object_keeps_its_name_where_it_has_one() {
        let parsed = parse(&format!(
            "{}---\n{}",
            WEB.replace("None", "nowhere"),
            WEB.replace("name: web", "name: W")
        ));
        assert_eq!(
            entries(&parsed),
            [["Service shop/web?"], ["Service shop/W?"]]
        );
        let parsed = parse(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: B}\n---\njust text\n",
        );
        assert_eq!(entries(&parsed), [["?"], ["?"]]);
    }
}
