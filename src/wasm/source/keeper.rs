//! Programs that keep credentials: `docker-credential-NAME get` is told a registry and answers with a name and a secret.
//!
//! Which program that is, a docker configuration of this host says, never a control plane. A program that does not answer
//! in time is ended.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::credentials::{Credential, CredentialError};

/// A store may have to ask somebody else.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a program has ended.
const STEP: Duration = Duration::from_millis(5);
/// Most that is read of an answer.
const MAX_ANSWER: u64 = 1 << 20;
/// What programs answer that have nothing for a registry.
const NOTHING: &str = "credentials not found in native keychain";
/// The name that stands for a token.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// What the program of `name` has for `server`. Waits for it: call it on a blocking thread.
///
/// # Errors
/// Where it cannot be run, fails, or does not answer.
pub(super) fn ask(name: &str, server: &str) -> Result<Option<Credential>, CredentialError> {
    let program = format!("docker-credential-{name}");
    // It is a name, and no path to anything.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let answer = if name.bytes().all(is_plain) {
        run(Command::new(&program).arg("get"), server, PATIENCE)
    } else {
        Err("not the name of a program".to_owned())
    };
    answer.map_err(|reason| CredentialError::Program { program, reason })
}

fn run(
    command: &mut Command,
    server: &str,
    patience: Duration,
) -> Result<Option<Credential>, String> {
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = Guard(child.map_err(|error| error.to_string())?);
    let late = Instant::now() + patience;
    if let Some(mut stdin) = child.0.stdin.take() {
        // One that needs no server does not read it; and a name is less than a pipe holds.
        let _ = stdin.write_all(server.as_bytes());
    }
    let (sender, receiver) = mpsc::channel();
    let stdout = child.0.stdout.take();
    // A thread of its own: there is no end to a pipe that somebody else holds.
    std::thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map(|stdout| stdout.take(MAX_ANSWER).read_to_end(&mut answer));
        // Nobody waits any more.
        let _ = sender.send(read.is_some_and(|read| read.is_ok()).then_some(answer));
    });
    let slow = || format!("no answer within {patience:?}");
    let answer = receiver.recv_timeout(patience).map_err(|_| slow())?;
    let answer = answer.ok_or("its answer cannot be read")?;
    let status = loop {
        match child.0.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() > late => return Err(slow()),
            None => std::thread::sleep(STEP),
        }
    };
    if !status.success() {
        let text = String::from_utf8_lossy(&answer);
        return match text.trim() {
            NOTHING => Ok(None),
            // What it says of a failure is no secret, and may be long.
            text => Err(format!(
                "{status}: {}",
                text.chars().take(200).collect::<String>()
            )),
        };
    }
    // The error would quote the secret.
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| "its answer is not of the form".to_owned())?;
    Ok(match answer {
        Answer { secret, .. } if secret.is_empty() => None,
        Answer { username, secret } if username == TOKEN => Some(Credential::Identity(secret)),
        Answer { username, secret } => Some(Credential::Basic {
            username,
            password: secret,
        }),
    })
}

/// Ends the program when it is not waited for any more.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // One that has ended cannot be ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> Result<Option<Credential>, String> {
        let mut command = Command::new("/bin/sh");
        run(command.args(["-c", script]), "reg.test:5000", patience)
    }

    #[test]
    fn what_programs_answer_is_read() {
        let basic = Credential::Basic {
            username: "me".to_owned(),
            password: "for reg.test:5000".to_owned(),
        };
        let token = Credential::Identity("t".to_owned());
        for (script, expected) in [
            (
                r#"read s; printf '{"ServerURL": "x", "Username": "me", "Secret": "for %s"}' "$s""#,
                Ok(Some(basic)),
            ),
            (
                r#"echo '{"Username": "<token>", "Secret": "t"}'"#,
                Ok(Some(token)),
            ),
            (r#"echo '{"Username": "", "Secret": ""}'"#, Ok(None)),
            (
                "echo 'credentials not found in native keychain'; exit 1",
                Ok(None),
            ),
            (
                "echo 'the keyring is locked'; exit 3",
                Err("exit status: 3: the keyring is locked"),
            ),
            ("echo hunter2", Err("its answer is not of the form")),
            ("exit 0", Err("its answer is not of the form")),
        ] {
            let found = shell(script, PATIENCE);
            assert_eq!(found, expected.map_err(str::to_owned), "{script}");
        }
    }

    #[test]
    fn a_program_that_does_not_answer_is_ended() {
        let begun = Instant::now();
        for script in [
            "exec sleep 60",
            // It goes on, and has said what it had to say; or leaves another behind that holds its end of the pipe.
            "exec >&-; exec sleep 60",
            "sleep 3 & exit 0",
        ] {
            let found = shell(script, Duration::from_millis(200));
            assert_eq!(found, Err("no answer within 200ms".to_owned()), "{script}");
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_name_is_no_path() {
        for (name, reason) in [
            ("../../bin/sh", "not the name of a program"),
            ("x y", "not the name of a program"),
            ("none.such", "No such file or directory (os error 2)"),
        ] {
            let error = ask(name, "reg.test").expect_err("no program");
            let expected = format!("docker-credential-{name}: {reason}");
            assert_eq!(error.to_string(), expected);
        }
    }
}
