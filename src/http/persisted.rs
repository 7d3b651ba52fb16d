//! Automatic persisted queries, and trusted documents: a mode that executes listed documents only.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;

use super::fifo_cache::FifoCache;
use super::operation::GraphqlRequest;
use super::response::RequestError;
use crate::error::Code;

/// Maximum length of a hash or id, in bytes.
pub const MAX_ID: usize = 128;

/// Documents by hash or id.
pub enum PersistedDocuments {
    /// Documents that clients registered with their hash, first in, first out.
    Automatic(FifoCache<Arc<str>>),
    /// The listed documents, by id and by hash.
    Trusted(HashMap<String, Arc<str>>),
}

impl PersistedDocuments {
    /// Creates an empty cache of this capacity, or the list of trusted documents if one is given.
    pub fn new(capacity: usize, trusted: Option<&HashMap<String, String>>) -> Self {
        match trusted {
            None => Self::Automatic(FifoCache::new(capacity)),
            Some(listed) => {
                let mut known = HashMap::with_capacity(listed.len() * 2);
                for (id, document) in listed {
                    let document: Arc<str> = document.as_str().into();
                    known.insert(sha256(&document), Arc::clone(&document));
                    known.insert(id.clone(), document);
                }
                Self::Trusted(known)
            }
        }
    }

    /// Sets the document that the request refers to, and rejects one that is not allowed. Returns
    /// the hash under which a new document is to be stored once it is found valid.
    pub fn resolve(
        &self,
        graphql_request: &mut GraphqlRequest,
    ) -> Result<Option<String>, RequestError> {
        let named = graphql_request
            .extensions
            .get("persistedQuery")
            .map(|named| named.get("sha256Hash").and_then(Value::as_str));
        let hash = match named {
            None => None,
            Some(Some(hash)) if hash.len() <= MAX_ID => Some(hash),
            Some(_) => {
                return Err(RequestError::new(
                    Code::BadRequest,
                    "`persistedQuery.sha256Hash` is not valid.",
                ));
            }
        };
        match (self, &graphql_request.query, hash) {
            (Self::Trusted(known), query, name) => {
                let found = match query {
                    Some(query) => known.get(&sha256(query)),
                    // An id exactly as listed, or a hash in any case.
                    None => name.and_then(|name| {
                        known
                            .get(name)
                            .or_else(|| known.get(&name.to_ascii_lowercase()))
                    }),
                };
                let untrusted =
                    || RequestError::new(Code::DocumentNotTrusted, "This document is not trusted.");
                graphql_request.query = Some(found.ok_or_else(untrusted)?.to_string());
                Ok(None)
            }
            (Self::Automatic(_), _, None) => Ok(None),
            (Self::Automatic(_), Some(query), Some(hash)) => {
                let hash = hash.to_ascii_lowercase();
                if sha256(query) != hash {
                    return Err(RequestError::new(
                        Code::BadRequest,
                        "The hash does not match the document.",
                    ));
                }
                Ok(Some(hash))
            }
            (Self::Automatic(cache), None, Some(hash)) => {
                // Clients match this exact message.
                let unknown =
                    || RequestError::new(Code::PersistedQueryNotFound, "PersistedQueryNotFound");
                graphql_request.query = Some(
                    cache
                        .get(&hash.to_ascii_lowercase())
                        .ok_or_else(unknown)?
                        .to_string(),
                );
                Ok(None)
            }
        }
    }

    /// Stores a document.
    pub fn insert(&self, hash: &str, document: &str) {
        if let Self::Automatic(cache) = self {
            cache.insert(hash, 1, document.into());
        }
    }
}

/// The SHA-256 hash of a text, in hexadecimal.
fn sha256(text: &str) -> String {
    let bytes = digest(&SHA256, text.as_bytes());
    bytes
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn graphql_request(query: Option<&str>, hash: Option<&str>) -> GraphqlRequest {
        let extensions =
            hash.map(|hash| json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } }));
        GraphqlRequest::from_json(json!({ "query": query, "extensions": extensions })).unwrap()
    }

    #[test]
    fn a_document_is_known_after_it_was_sent_with_its_hash() {
        let documents = PersistedDocuments::new(2, None);
        let hash = sha256("{ a }");
        assert_eq!(
            documents
                .resolve(&mut graphql_request(None, Some(&hash)))
                .unwrap_err()
                .code,
            Code::PersistedQueryNotFound
        );
        let remembered = documents
            .resolve(&mut graphql_request(Some("{ a }"), Some(&hash)))
            .unwrap()
            .unwrap();
        documents.insert(&remembered, "{ a }");
        let mut again = graphql_request(None, Some(&hash));
        assert_eq!(documents.resolve(&mut again).unwrap(), None);
        assert_eq!(again.query.as_deref(), Some("{ a }"));
        assert_eq!(
            documents
                .resolve(&mut graphql_request(Some("{ b }"), Some(&hash)))
                .unwrap_err()
                .code,
            Code::BadRequest
        );
        for other in ["{ b }", "{ c }"] {
            documents.insert(&sha256(other), other);
        }
        assert!(
            documents
                .resolve(&mut graphql_request(None, Some(&hash)))
                .is_err()
        );
    }

    #[test]
    fn only_listed_documents_are_trusted() {
        let listed = HashMap::from([("a".to_owned(), "{ a }".to_owned())]);
        let documents = PersistedDocuments::new(2, Some(&listed));
        for mut trusted in [
            graphql_request(Some("{ a }"), None),
            graphql_request(None, Some(&sha256("{ a }"))),
            graphql_request(None, Some("a")),
        ] {
            documents.resolve(&mut trusted).unwrap();
            assert_eq!(trusted.query.as_deref(), Some("{ a }"));
        }
        for mut other in [
            graphql_request(Some("{ b }"), None),
            graphql_request(None, Some("b")),
            graphql_request(Some("{ b }"), Some("a")),
        ] {
            assert_eq!(
                documents.resolve(&mut other).unwrap_err().code,
                Code::DocumentNotTrusted
            );
        }
    }
}
