//! An SMTP server (RFC 5321) on loopback that keeps all mail.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::PATIENCE;

/// An SMTP server and its received mail.
pub(crate) struct Mailbox {
    address: SocketAddr,
    refuses: Arc<AtomicBool>,
    refused: mpsc::UnboundedReceiver<()>,
    arrived: mpsc::UnboundedReceiver<Mail>,
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Mail {
    /// The recipient.
    pub to: String,
    /// Headers and parts, decoded from quoted-printable.
    pub content: String,
}

impl Mail {
    pub(crate) fn subject(&self) -> &str {
        self.content
            .lines()
            .find_map(|line| line.strip_prefix("Subject: "))
            .expect("a subject")
    }

    /// The token in the message's link.
    pub(crate) fn token(&self) -> String {
        let (_, rest) = self
            .content
            .split_once("#token=")
            .unwrap_or_else(|| panic!("no token in {}", self.content));
        rest.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_')
            .collect()
    }
}

impl Mailbox {
    /// Starts the SMTP server on a free port.
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("an address");
        let refuses = Arc::new(AtomicBool::new(false));
        let (refusals, refused) = mpsc::unbounded_channel();
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let closed = Arc::clone(&refuses);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(receive(
                    stream,
                    arrivals.clone(),
                    refusals.clone(),
                    Arc::clone(&closed),
                ));
            }
        });
        Self {
            address,
            refuses,
            refused,
            arrived,
        }
    }

    /// The value for `SMTP_URL`.
    pub(crate) fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    /// Waits for the next message.
    pub(crate) async fn next(&mut self) -> Mail {
        timeout(PATIENCE, self.arrived.recv())
            .await
            .expect("mail before the timeout")
            .expect("an open mailbox")
    }

    /// Waits for the next message to this address and discards others.
    pub(crate) async fn next_to(&mut self, address: &str) -> Mail {
        loop {
            let mail = self.next().await;
            if mail.to == address {
                return mail;
            }
        }
    }

    /// Starts or stops refusing every message.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Waits until a message has been refused.
    pub(crate) async fn refused(&mut self) {
        timeout(PATIENCE, self.refused.recv())
            .await
            .expect("a refusal before the timeout");
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.arrived.is_empty()
    }
}

async fn receive(
    stream: TcpStream,
    arrivals: mpsc::UnboundedSender<Mail>,
    refusals: mpsc::UnboundedSender<()>,
    refuses: Arc<AtomicBool>,
) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut to = String::new();
    writer.write_all(b"220 mailbox\r\n").await.ok()?;
    while let Some(line) = lines.next_line().await.ok()? {
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let answer: &[u8] = match verb.as_str() {
            "MAIL" if refuses.load(Ordering::SeqCst) => {
                refusals.send(()).ok()?;
                b"451 come back later\r\n"
            }
            "RCPT" => {
                to = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                b"250 ok\r\n"
            }
            "DATA" => {
                writer.write_all(b"354 go on\r\n").await.ok()?;
                let mut raw = String::new();
                while let Some(line) = lines.next_line().await.ok()?.filter(|line| line != ".") {
                    raw.push_str(line.strip_prefix("..").map_or(&line, |_| &line[1..]));
                    raw.push('\n');
                }
                arrivals
                    .send(Mail {
                        to: to.clone(),
                        content: decoded(&raw),
                    })
                    .ok()?;
                b"250 taken\r\n"
            }
            "QUIT" => b"221 bye\r\n",
            _ => b"250 ok\r\n",
        };
        writer.write_all(answer).await.ok()?;
    }
    Some(())
}

/// Decodes quoted-printable (RFC 2045), for ASCII only.
fn decoded(raw: &str) -> String {
    raw.replace("=\n", "")
        .replace("=3D", "=")
        .replace("=3d", "=")
}
