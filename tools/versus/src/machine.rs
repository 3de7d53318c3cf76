//! What the figures were measured on, and with.

use std::fs;
use std::thread;

pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// One line.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpu_info.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
        line.and_then(|line| line.split(':').nth(1)).map_or("unknown", str::trim)
    };
    let release = read("/proc/sys/kernel/osrelease");
    let kernel: Vec<&str> = release.trim().split(['.', '-']).take(2).collect();
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let virtual_machine =
        if field("flags").split(' ').any(|flag| flag == "hypervisor") { " (a virtual machine)" } else { "" };
    let mut line = format!(
        "{} family {} model {}{virtual_machine}; {} cores; {} {} {}; clock source {}; {}",
        field("model name"),
        field("cpu family"),
        field("model"),
        cores(),
        std::env::consts::OS,
        kernel.join("."),
        std::env::consts::ARCH,
        if clock.trim().is_empty() { "unknown" } else { clock.trim() },
        env!("VERSUS_RUSTC").split('(').next().unwrap_or_default().trim(),
    );
    if cfg!(debug_assertions) {
        line += "; built without optimisation: the figures mean little";
    }
    line
}

/// The release of a crate that this program was built with.
pub(crate) fn version(name: &str) -> &'static str {
    static LOCK_FILE: &str = include_str!("../../../Cargo.lock");
    let mut lines = LOCK_FILE.lines();
    let wanted = format!("name = \"{name}\"");
    lines
        .by_ref()
        .find(|line| *line == wanted)
        .and_then(|_| lines.next())
        .and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_one_line_and_the_versions_are_known() {
        let line = describe();
        assert!(line.contains("cores") && line.contains("rustc 1.") && !line.contains('\n'), "{line}");
        assert_eq!(version("versus"), env!("CARGO_PKG_VERSION"));
        assert_eq!(version("no such crate"), "unknown");
    }
}
