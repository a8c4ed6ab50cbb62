//! Programs that keep credentials: `docker-credential-NAME get` is told a registry and answers with a name and a secret.
//!
//! Which program that is, a docker configuration of this host says, never a control plane. A program that does not answer
//! in time is ended.

use std::io::Write as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::credentials::{Credential, CredentialError};

/// A store may have to ask somebody else.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a program has ended.
const STEP: Duration = Duration::from_millis(5);
/// How long the end of an answer is waited for when its program has ended: what that has written is there by then, and
/// somebody whom it has left behind may hold the pipe for ever.
const GRACE: Duration = Duration::from_millis(100);
/// Most that is read of an answer.
const MAX_ANSWER: usize = 1 << 20;
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
    if let Some(mut stdin) = child.0.stdin.take() {
        // One that needs no server does not read it; and a name is less than a pipe holds.
        let _ = stdin.write_all(server.as_bytes());
    }
    // Of its own: this is a thread that may wait, with a runtime around it or without.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let (answer, status) = runtime.block_on(heard(&mut child.0, patience))?;
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

/// What the program answers, and how it ends.
async fn heard(child: &mut Child, patience: Duration) -> Result<(Vec<u8>, ExitStatus), String> {
    let unreadable = |_| "its answer cannot be read".to_owned();
    let stdout = child.stdout.take().ok_or("it has no output")?;
    let mut stdout = pipe::Receiver::from_owned_fd(stdout.into()).map_err(unreadable)?;
    let late = Instant::now() + patience;
    let (mut answer, mut open) = (Vec::new(), true);
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        if let Some((status, until)) = ended
            && (!open || Instant::now() >= until)
        {
            return Ok((answer, status));
        }
        tokio::select! {
            biased;
            read = stdout.read_buf(&mut answer), if open => {
                open = read.map_err(unreadable)? > 0;
                if answer.len() > MAX_ANSWER {
                    return Err("its answer is too long".to_owned());
                }
            }
            () = tokio::time::sleep(STEP) => {
                if ended.is_none() {
                    ended = child
                        .try_wait()
                        .map_err(|error| error.to_string())?
                        .map(|status| (status, Instant::now() + GRACE));
                }
                if ended.is_none() && Instant::now() > late {
                    return Err(format!("no answer within {patience:?}"));
                }
            }
        }
    }
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
            // It goes on, and has said what it had to say.
            "exec >&-; exec sleep 60",
        ] {
            let found = shell(script, Duration::from_millis(200));
            assert_eq!(found, Err("no answer within 200ms".to_owned()), "{script}");
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn whom_a_program_leaves_behind_is_not_waited_for() {
        let begun = Instant::now();
        let script = r#"sleep 60 & echo '{"Username": "<token>", "Secret": "t"}'"#;
        let token = Credential::Identity("t".to_owned());
        assert_eq!(shell(script, PATIENCE), Ok(Some(token)));
        assert!(begun.elapsed() < PATIENCE);
        let silent = shell("sleep 60 & exit 0", PATIENCE);
        assert_eq!(silent, Err("its answer is not of the form".to_owned()));
        let endless = shell("exec cat /dev/zero", PATIENCE);
        assert_eq!(endless, Err("its answer is too long".to_owned()));
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
