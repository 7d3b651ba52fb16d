//! The OpenAPI 3.1 document of the `/auth` routes at `/docs/openapi.json`, and a page to read and
//! try them at `/docs`.
//!
//! The document is generated from the routes: the router and the document read path and method from
//! the same annotation, so they cannot differ. The errors of an operation come from the
//! [`DocumentedErrors`] of its body.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use axum::Router;
use axum::http::header;
use axum::response::Html;
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::response::{Response as Answer, ResponseBuilder};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::account_email::CONTENT_SECURITY_POLICY;
use super::{auth, problem};
use crate::error::{Code, UserErrorCode};

/// `/docs` and the OpenAPI document.
pub fn routes() -> Router {
    let json = Bytes::from(document());
    let file = |kind: &'static str, file: Bytes| {
        get(async move || {
            (
                [(header::CONTENT_TYPE, kind)],
                [(header::CACHE_CONTROL, "no-cache")],
                file,
            )
        })
    };
    Router::new()
        .route(
            "/docs",
            get(async || {
                (
                    [(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY)],
                    Html(include_str!("openapi.html")),
                )
            }),
        )
        .route(
            "/docs/page.js",
            file(
                "text/javascript",
                Bytes::from_static(include_bytes!("openapi.js")),
            ),
        )
        .route("/docs/openapi.json", file("application/json", json))
}

/// The OpenAPI document as JSON.
pub fn document() -> String {
    let routes = auth::routes().into_openapi();
    let document = ApiDoc::openapi().merge_from(routes);
    // Serializing these types cannot fail.
    document.to_pretty_json().unwrap_or_default()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fasttrack: accounts",
        description = "Registration, tokens and account e-mails. Everything else is GraphQL, at `/graphql`.\n\n\
            Bodies are `application/json` or a form, up to 8 KiB. Errors are problem documents (RFC 9457) with a \
            stable `code`. Every response has an `X-Request-Id`, which identifies the request in the server log, and \
            `Cache-Control: no-store`. Every rate-limited response has `RateLimit-Limit`, `RateLimit-Remaining` and \
            `RateLimit-Reset` (in seconds).",
    ),
    components(schemas(problem::ProblemDocument<'static>)),
    modifiers(&BearerAuth),
)]
struct ApiDoc;

struct BearerAuth;

impl Modify for BearerAuth {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("access_token", SecurityScheme::Http(bearer));
    }
}

/// The errors of an operation, in addition to those of every operation.
pub trait DocumentedErrors {
    const READS_BODY: bool = true;
    const CODES: &[Code] = &[];
    const USER_ERRORS: &[UserErrorCode] = &[];
}

/// The problem documents of an operation, by status.
pub struct ErrorResponses<T>(PhantomData<T>);

impl<T: DocumentedErrors> IntoResponses for ErrorResponses<T> {
    fn responses() -> BTreeMap<String, RefOr<Answer>> {
        let mut codes: BTreeMap<u16, Vec<(&str, &str)>> = BTreeMap::new();
        let mut add =
            |status, code, meaning| codes.entry(status).or_default().push((code, meaning));
        let of_any = [
            Code::Forbidden,
            Code::RateLimited,
            Code::Internal,
            Code::Unavailable,
        ];
        let of_bodies = [
            Code::BadRequest,
            Code::PayloadTooLarge,
            Code::UnsupportedMediaType,
        ];
        let of_bodies = of_bodies.iter().filter(|_| T::READS_BODY);
        for code in of_bodies.chain(T::CODES).chain(&of_any) {
            add(
                code.status(),
                code.as_str(),
                code.description().trim_start_matches("REST: "),
            );
        }
        if T::READS_BODY {
            add(
                422,
                Code::BadRequest.as_str(),
                "A field is missing or has the wrong type.",
            );
        }
        for fault in T::USER_ERRORS {
            let status = if *fault == UserErrorCode::Taken {
                409
            } else {
                422
            };
            add(status, fault.as_str(), "`errors` names the field.");
        }
        codes
            .into_iter()
            .map(|(status, codes)| (status.to_string(), RefOr::T(error_response(status, &codes))))
            .collect()
    }
}

fn error_response(status: u16, codes: &[(&str, &str)]) -> Answer {
    let description: Vec<String> = codes
        .iter()
        .map(|(code, meaning)| format!("`{code}`: {meaning}"))
        .collect();
    let code = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(codes.iter().map(|(code, _)| *code)));
    let narrowed = ObjectBuilder::new().property("code", code);
    let schema = AllOfBuilder::new()
        .item(Ref::from_schema_name("Problem"))
        .item(narrowed);
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let answer = ResponseBuilder::new()
        .description(description.join("\n\n"))
        .content("application/problem+json", content);
    let header = |kind, description: &str| {
        let schema = ObjectBuilder::new().schema_type(kind);
        HeaderBuilder::new()
            .schema(Some(schema))
            .description(Some(description))
            .build()
    };
    match status {
        401 => answer.header("WWW-Authenticate", header(Type::String, "`Bearer`")),
        429 => answer
            .header(
                "RateLimit-Limit",
                header(Type::Integer, "Requests per minute."),
            )
            .header(
                "RateLimit-Remaining",
                header(Type::Integer, "Requests left."),
            )
            .header(
                "RateLimit-Reset",
                header(
                    Type::Integer,
                    "Seconds until requests become available again.",
                ),
            )
            .header(
                "Retry-After",
                header(Type::Integer, "Seconds to wait before a retry."),
            ),
        503 => answer.header(
            "Retry-After",
            header(Type::Integer, "Seconds to wait before a retry."),
        ),
        _ => answer,
    }
    .build()
}
