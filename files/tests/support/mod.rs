//! What the tests have in common.

#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A guard against hangs, in real time; no test waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says so where it is seen: what a test prints is shown only if it fails.
pub fn skip(reason: &str) {
    use std::io::Write as _;
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// The number that an environment variable sets for long runs.
pub fn number(variable: &str, short: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

/// The folder in which a test in a process of its own works, if this is one.
pub fn given_folder() -> Option<PathBuf> {
    std::env::var_os("DOGPILE_FILES_FOLDER").map(PathBuf::from)
}

/// A command that runs one test of this binary, which is ignored otherwise, in a process of its own.
pub fn test_process(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    arguments(&mut command, test, folder);
    command
}

fn arguments(command: &mut Command, test: &str, folder: &Path) {
    command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env("DOGPILE_FILES_FOLDER", folder);
}

/// As [`test_process`], run to its end as a user with no rights. `false`, with a notice, if this process may not do that.
#[cfg(unix)]
pub fn run_as_another_user(test: &str, user: u32) -> bool {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        skip("only root can start a process of another user");
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The user may not be able to reach the folder that this binary is in.
    let binary = folder.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let work = folder.path().join("work");
    std::fs::create_dir(&work).unwrap();
    chown(&work, Some(user), Some(user)).unwrap();
    let mut command = Command::new(binary);
    arguments(&mut command, test, &work);
    let output = command.uid(user).gid(user).current_dir("/").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "{printed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

/// As [`test_process`], run to its end after a shell command that mounts something in the test's folder. In a mount namespace,
/// which ends with the process. `false`, with a notice, if this process may not do that.
pub fn run_with_mounts(test: &str, mount: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let process = test_process(test, folder.path());
    let script = format!("cd \"$DOGPILE_FILES_FOLDER\" && {mount} || exit 77; exec \"$@\"");
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, "sh"])
        .arg(process.get_program())
        .args(process.get_args())
        .env("DOGPILE_FILES_FOLDER", folder.path())
        .output();
    let Ok(output) = output else {
        skip("there is no unshare");
        return false;
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        assert!(printed.contains("1 passed"), "{printed}");
        return true;
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!printed.contains("running 1 test"), "{printed}\n{errors}");
    skip(&format!("this process may not mount anything: {errors}"));
    false
}
