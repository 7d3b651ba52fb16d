//! Rate limits and size limits, as clients meet them.

use std::ops::Range;

use reqwest::Method;
use serde_json::json;

use crate::harness::{Frame, Person, Reply, Server, Socket};

#[tokio::test]
async fn points_are_counted_and_reported() {
    let settings = [
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_COST_PER_MINUTE", "5"),
    ];
    let server = Server::with(&settings).await;
    let ask = async || {
        let body = json!({ "query": "{ rateLimit { limit remaining used resetAt cost } }" });
        server
            .request(Method::POST, "/graphql")
            .json(&body)
            .send()
            .await
            .expect("an answer")
    };
    let first = ask().await;
    assert_eq!(first.headers()["ratelimit-limit"], "5");
    assert_eq!(first.headers()["ratelimit-remaining"], "4");
    let body: serde_json::Value = first.json().await.expect("JSON");
    assert_eq!(body["extensions"]["cost"], 1);
    let expected = json!({
        "limit": 5, "remaining": 4, "used": 1, "resetAt": "2030-01-01T12:01:00.000000Z", "cost": 1
    });
    assert_eq!(body["data"]["rateLimit"], expected);
    for _ in 0..4 {
        assert_eq!(ask().await.status(), 200);
    }
    let refused = ask().await;
    assert_eq!(
        (
            refused.status().as_u16(),
            &refused.headers()["ratelimit-remaining"]
        ),
        (429, &"0".parse().unwrap())
    );
    assert_eq!(refused.headers()["ratelimit-limit"], "5");
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .expect("text")
        .parse()
        .expect("seconds");
    assert!((60..=120).contains(&wait), "{wait}");
}

/// The three `RateLimit-*` headers as numbers.
fn rate_limit(reply: &Reply) -> [u64; 3] {
    ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"].map(|name| {
        let value = reply
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {} {:?}", reply.status, reply.headers));
        value.to_str().expect("text").parse().expect("a number")
    })
}

#[tokio::test]
async fn rate_limit_headers_are_on_answers_and_refusals() {
    let server = Server::with(&[
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "2"),
        ("RATE_LIMIT_AUTH_PER_MINUTE", "1"),
        ("RATE_LIMIT_GRAPHQL_PER_MINUTE", "2"),
    ])
    .await;
    let login = async || {
        server
            .post(
                "/auth/login",
                json!({ "username": "nobody", "password": "x" }),
            )
            .await
    };
    let replies = [login().await, login().await, login().await];
    assert_eq!(
        replies.each_ref().map(|reply| reply.status.as_u16()),
        [401, 401, 429]
    );
    let told = replies.each_ref().map(rate_limit);
    assert_eq!(
        told.map(|[limit, remaining, _]| (limit, remaining)),
        [(2, 1), (2, 0), (2, 0)]
    );
    assert_eq!(told[0][2], 60);
    assert_eq!(
        replies[2].headers["retry-after"],
        told[2][2].to_string().as_str(),
        "until the next request fits"
    );
    let refresh = async || {
        server
            .post("/auth/refresh", json!({ "refresh_token": "x" }))
            .await
    };
    let (first, refused) = (refresh().await, refresh().await);
    assert_eq!(
        (
            rate_limit(&first)[..2].to_vec(),
            rate_limit(&refused)[..2].to_vec()
        ),
        (vec![1, 0], vec![1, 0])
    );
    assert_eq!((first.status.as_u16(), refused.status.as_u16()), (401, 429));

    for media in [
        "application/json",
        "application/graphql-response+json",
        "text/event-stream",
    ] {
        let server = Server::with(&[
            ("RATE_LIMIT_ENABLED", "true"),
            ("RATE_LIMIT_GRAPHQL_PER_MINUTE", "2"),
        ])
        .await;
        let ask = async || {
            let request = server
                .request(Method::POST, "/graphql")
                .header("accept", media);
            Reply::to(request.json(&json!({ "query": "{ __typename }" }))).await
        };
        let replies = [ask().await, ask().await, ask().await];
        assert_eq!(
            replies.each_ref().map(|reply| reply.status.as_u16()),
            [200, 200, 429],
            "{media}"
        );
        assert_eq!(
            rate_limit(&replies[0])[..2],
            [6_000, 5_999],
            "{media}: in points"
        );
        let [limit, remaining, reset] = rate_limit(&replies[2]);
        assert_eq!(
            (limit, remaining),
            (2, 0),
            "{media}: in requests, the exhausted quota"
        );
        assert_eq!(
            replies[2].headers["retry-after"],
            reset.to_string().as_str()
        );
    }
}

#[tokio::test]
async fn connection_init_counts_per_user_not_per_address() {
    let server = Server::with(&[
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "100"),
        ("RATE_LIMIT_GRAPHQL_PER_MINUTE", "4"),
    ])
    .await;
    // Creating each person has already cost one query, for their id.
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(alice.socket().await);
    }
    let greeting = json!({ "Authorization": format!("Bearer {}", alice.token()) });
    let mut refused = Socket::open(server.address).await;
    refused
        .send(json!({ "type": "connection_init", "payload": greeting }))
        .await;
    assert_eq!(refused.receive().await, Frame::Closed(Some(1013)));
    sockets.push(bob.socket().await);
    assert_eq!(
        server.nobody().query("{ __typename }", json!({})).await["__typename"],
        "Query"
    );
}

#[tokio::test]
async fn forwarded_address_is_used_only_from_trusted_proxies() {
    let limited = [
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "2"),
    ];
    let statuses = async |server: &Server| {
        let mut statuses = Vec::new();
        for number in 0..4 {
            let request = server
                .request(Method::POST, "/auth/login")
                .header("x-forwarded-for", format!("192.0.2.{number}"));
            let answer = request
                .json(&json!({ "username": "nobody", "password": "x" }))
                .send()
                .await;
            statuses.push(answer.expect("an answer").status().as_u16());
        }
        statuses
    };
    assert_eq!(
        statuses(&Server::with(&limited).await).await,
        [401, 401, 429, 429]
    );
    let trusting = [limited[0], limited[1], ("TRUSTED_PROXIES", "127.0.0.0/8")];
    assert_eq!(
        statuses(&Server::with(&trusting).await).await,
        [401, 401, 401, 401]
    );
}

/// The longest possible description: 40,000 bytes.
fn long() -> String {
    "\u{1f680}".repeat(10_000)
}

/// Creates labels for a range of numbers, ten at a time.
async fn labels(person: &Person, project: &str, numbers: Range<usize>) {
    let numbers: Vec<usize> = numbers.collect();
    for numbers in numbers.chunks(10) {
        let create = |number: &usize| {
            format!(
                r#"a{number}: createLabel(input: {{ projectId: $id, name: "{number}" }}) {{ userErrors {{ code }} }} "#
            )
        };
        let fields: String = numbers.iter().map(create).collect();
        let made = person
            .query(
                &format!("mutation ($id: ID!) {{ {fields} }}"),
                json!({ "id": project }),
            )
            .await;
        assert!(
            made.as_object()
                .is_some_and(|made| made.values().all(|one| one["userErrors"] == json!([]))),
            "{made}"
        );
    }
}

#[tokio::test]
async fn unpaged_list_counts_as_ten_items() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let ask = async |document: &str| alice.ask(document, json!({ "id": project })).await;
    for natural in [
        "{ tasks(first: 100) { nodes { labels { id name color } } } }",
        "{ projects(first: 10) { nodes { labels { name } tasks(first: 50) { nodes { title labels { id name color } } } } } }",
        "query ($id: ID!) { project(id: $id) { labels { project { labels { id name color } } } } }",
        "{ viewer { sessions { id userAgent isCurrent } } }",
    ] {
        assert!(ask(natural).await.codes().is_empty(), "{natural}");
    }
    let cycle = "query ($id: ID!) { project(id: $id) { labels { project { labels { project { labels { project {
        labels { id } } } } } } } } }";
    assert_eq!(ask(cycle).await.code(), "DOCUMENT_TOO_COMPLEX");
}

#[tokio::test]
async fn ids_argument_counts_as_a_page() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let inner = "{ ... on Project { tasks(first: 100) { nodes { comments(first: 90) { nodes { body } } } } } }";
    let ask = async |ids: &[&String]| {
        let document = format!("query ($ids: [ID!]!) {{ nodes(ids: $ids) {inner} }}");
        alice.ask(&document, json!({ "ids": ids })).await
    };
    assert!(ask(&[&project]).await.codes().is_empty());
    assert_eq!(ask(&[&project; 100]).await.code(), "DOCUMENT_TOO_COMPLEX");
    let named = format!(r#"{{ nodes(ids: ["{project}", "{project}"]) {inner} }}"#);
    assert_eq!(
        alice.ask(&named, json!({})).await.code(),
        "DOCUMENT_TOO_COMPLEX"
    );
}

#[tokio::test]
async fn response_over_4_mib_is_refused_as_not_retryable() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for number in 0..11 {
        alice
            .task(
                &project,
                &number.to_string(),
                json!({ "description": long() }),
            )
            .await;
    }
    let whole = "nodes { project { tasks(first: 100) { nodes { description } } } }";
    let many: String = (0..11)
        .map(|number| format!("a{number}: tasks {{ nodes {{ description }} }} "))
        .collect();
    for (way, document) in [
        ("by level", format!("{{ tasks {{ {whole} }} }}")),
        (
            "by async-graphql",
            format!("{{ tasks {{ {whole} }} tasks {{ nodes {{ id }} }} }}"),
        ),
        ("in many fields", format!("{{ {many} }}")),
    ] {
        let body = json!({ "query": document });
        let request = alice
            .post("/graphql")
            .header("accept", "application/graphql-response+json")
            .json(&body);
        let reply = Reply::to(request).await;
        let (code, retry) = (
            &reply.body["errors"][0]["extensions"]["code"],
            reply.headers.get("retry-after"),
        );
        assert_eq!(
            (code, reply.status.as_u16(), retry),
            (&json!("DOCUMENT_TOO_COMPLEX"), 422, None),
            "{way}"
        );
        assert_eq!(reply.body.get("data"), None, "{way}");
    }
    let one = alice
        .query("{ tasks { nodes { description } } }", json!({}))
        .await;
    assert_eq!(one["tasks"]["nodes"][10]["description"], long());
}

#[tokio::test]
async fn nested_unpaged_lists_count_their_actual_length() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    labels(&alice, &project, 0..40).await;
    let ask = async |labels: &str| {
        let document = format!(
            "query ($id: ID!) {{ project(id: $id) {{ labels {{ project {{ labels {{ project {{ {labels} }} }} }} }} }} }}"
        );
        alice.ask(&document, json!({ "id": project })).await
    };
    assert!(
        ask("labels { id }").await.codes().is_empty(),
        "in batches: 2 MiB of text"
    );
    assert_eq!(
        ask("labels { id } labels { name }").await.code(),
        "DOCUMENT_TOO_COMPLEX"
    );
}

#[tokio::test]
async fn a_project_has_at_most_100_labels() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let (project, other) = (alice.project("Apollo").await, alice.project("Gemini").await);
    labels(&alice, &project, 0..100).await;
    let create = json!({ "projectId": project, "name": "one more" });
    assert_eq!(
        alice.mutate("createLabel", create.clone()).await.faults(),
        ["projectId: QUOTA_EXCEEDED"]
    );
    alice.label(&other, "another").await;
    let seen = alice
        .query(
            "query ($id: ID!) { project(id: $id) { labels { id } } }",
            json!({ "id": project }),
        )
        .await;
    alice
        .mutate(
            "deleteLabel",
            json!({ "id": seen["project"]["labels"][0]["id"] }),
        )
        .await
        .ok();
    alice.mutate("createLabel", create).await.ok();
}

#[tokio::test]
async fn exports_have_their_own_cost_size_and_concurrency_limits() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for number in 0..110 {
        alice
            .task(
                &project,
                &number.to_string(),
                json!({ "description": long() }),
            )
            .await;
    }
    let answer = alice.ask("{ exportViewerData }", json!({})).await.0;
    assert_eq!(
        answer["data"]["exportViewerData"]["tasks"]
            .as_array()
            .map(Vec::len),
        Some(110),
        "more than 4 MiB"
    );
    assert_eq!(
        answer["data"]["exportViewerData"]["tasks"][109]["description"],
        long()
    );
    assert_eq!(answer["extensions"]["cost"], 1_001);
    let twice = alice
        .ask("{ exportViewerData again: exportViewerData }", json!({}))
        .await;
    assert_eq!(twice.code(), "DOCUMENT_TOO_COMPLEX");
}
