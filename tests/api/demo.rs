//! `fasttrack demo`.

use fasttrack::demo;
use fasttrack::error::Error;

use crate::harness::{Server, text};

#[tokio::test]
async fn demo_fills_only_an_empty_database() {
    let server = Server::start().await;
    let fill = async || server.run(async |app| demo::fill(&app).await).await;
    let password = fill().await.expect("the demo data");
    let erin = server.login_with("erin", password).await;
    let users = erin
        .query(
            "{ users { totalCount } tasks { totalCount } }",
            serde_json::json!({}),
        )
        .await;
    assert_eq!(
        (&users["users"]["totalCount"], &users["tasks"]["totalCount"]),
        (&5.into(), &15.into())
    );
    let refused = fill().await.expect_err("a database in use");
    assert!(
        matches!(&refused, Error::Refused { message, .. } if message.contains("not empty")),
        "{refused:?}"
    );

    // Otherwise a well-known password would give access to a server in use.
    let server = Server::start().await;
    server.person("zoe").await;
    let before = server.database().rows().await["users"].clone();
    let refused = server
        .run(async |app| demo::fill(&app).await)
        .await
        .expect_err("a database in use");
    assert!(matches!(&refused, Error::Refused { .. }), "{refused:?}");
    let after = server.database().rows().await["users"].clone();
    assert_eq!(
        after
            .iter()
            .map(|row| text(&row["username"]))
            .collect::<Vec<_>>(),
        ["zoe"]
    );
    assert_eq!(before, after);
}
