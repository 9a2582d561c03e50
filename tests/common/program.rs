//! The program `gateway-sim`, as a separate process.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};

use threadcord::{Config, Intents, Token};

/// The running program, with what a bot must know to connect.
pub struct Program {
    pub child: Child,
    pub lines: BufReader<std::process::ChildStdout>,
    pub rest_url: String,
    pub token: String,
}

impl Program {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gateway-sim"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut value = |word: &str| {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            line.strip_prefix(word)
                .unwrap_or_else(|| panic!("{word}: {line}"))
                .trim()
                .to_owned()
        };

        let _gateway = value("gateway");
        let (rest_url, token) = (value("rest"), value("token"));
        Self {
            child,
            lines,
            rest_url,
            token,
        }
    }

    pub fn config(&self) -> Config {
        Config::new(Token::new(&*self.token).unwrap(), Intents::all()).rest_url(&*self.rest_url)
    }

    pub fn order(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Ends the program. Returns everything that it has printed.
    pub fn end(mut self) -> (String, ExitStatus) {
        self.order("quit");
        let mut said = String::new();
        self.lines.read_to_string(&mut said).unwrap();
        (said, self.child.wait().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program has ended already, unless a test has failed.
        let _ = self.child.kill();
    }
}
