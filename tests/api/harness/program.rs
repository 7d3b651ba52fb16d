//! The server as a separate process, for tests of its environment and output.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::PATIENCE;

/// A process whose output is read line by line. It is killed at the end of the test.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program that starts");
        let (sender, lines) = channel();
        send_lines(child.stdout.take().expect("its output"), sender.clone());
        send_lines(child.stderr.take().expect("its errors"), sender);
        Self { child, lines }
    }

    /// Starts a server with a database file and keys in `directory`; returns its address.
    pub(crate) fn server(directory: &Path, settings: &[(&str, &str)]) -> (Self, SocketAddr) {
        let mut command = fasttrack(directory, settings);
        let program = Self::start(&mut command);
        let line = program.line("listens on http://");
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .expect("an address");
        (program, address.parse().expect("an address"))
    }

    /// Waits for a line that contains `text`.
    pub(crate) fn line(&self, text: &str) -> String {
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no line with {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Peak memory so far, in KiB; `None` where the system does not report it.
    pub(crate) fn peak_memory(&self) -> Option<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(
            line.trim()
                .trim_end_matches(" kB")
                .parse()
                .expect("a number"),
        )
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().expect("a process that can be ended");
        self.child.wait().expect("its end");
    }
}

/// `fasttrack` with only these settings in its environment.
pub(crate) fn fasttrack(directory: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasttrack"));
    command
        .env_clear()
        .current_dir(directory)
        .env("LISTEN_ADDR", "127.0.0.1:0");
    command.envs(settings.iter().copied());
    command
}

fn send_lines(output: impl Read + Send + 'static, lines: Sender<String>) {
    // Ends with the process or with the test.
    std::thread::spawn(move || {
        BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| lines.send(line))
    });
}
