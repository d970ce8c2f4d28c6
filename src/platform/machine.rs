//! What the machine has: memory and disk; and how sizes are read.
//!
//! Memory that can still be had is the least of what the machine, each control group around this process (a container, a systemd unit,
//! a batch job) and the shell's limits leave. Elsewhere than on Linux it is what the system calls available.

use std::path::{Path, PathBuf};

/// Returns the bytes of memory that can still be had; `None` where the system does not tell.
pub fn free_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        linux::free_memory()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        Some(system.available_memory()).filter(|free| *free > 0)
    }
}

/// Returns the bytes of memory that this process could ever have: the least of what the machine and each of its limits allow, in
/// use or not; `None` where the system does not tell.
pub fn all_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        linux::all_memory()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        Some(system.total_memory()).filter(|all| *all > 0)
    }
}

/// Returns the most memory that this process has had, where the system tells: Linux.
pub fn peak_memory() -> Option<u64> {
    entry(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Returns the seconds that processors have worked for this process, where the system tells: Linux, to hundredths.
pub fn cpu_seconds() -> Option<f64> {
    /// The system's own unit, the same on every architecture that Linux has today.
    const TICKS_A_SECOND: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // behind the program's name, which may hold anything
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_A_SECOND)
}

/// Lets the most begin anew from what this process has now; what others measure of it begins anew too.
/// - Errors where the system does not do that.
pub fn forget_peak() -> std::io::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5")
}

/// Returns the bytes free to us on the disk where `path` is, or will be; `None` where the system does not tell.
pub fn free_disk(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let there = path.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
        let disk = there.filter(|p| p.exists()).find_map(|p| rustix::fs::statvfs(p).ok())?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Returns an entry of `/proc/meminfo` or `/proc/self/status`, in bytes: both write kB, and mean 1024.
fn entry(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Version, entry, group_folders, limits_room, room};
    use std::fs::read_to_string;

    pub fn free_memory() -> Option<u64> {
        let machine = entry(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
        Some([group_room(true), limit_room(true)].into_iter().flatten().fold(machine, u64::min))
    }

    pub fn all_memory() -> Option<u64> {
        let machine = entry(&read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
        Some([group_room(false), limit_room(false)].into_iter().flatten().fold(machine, u64::min))
    }

    /// What the tightest of the groups around this process leaves; or (not `used`) what it allows.
    fn group_room(used: bool) -> Option<u64> {
        let (groups, mounts) =
            (read_to_string("/proc/self/cgroup").ok()?, read_to_string("/proc/self/mountinfo").ok()?);
        let rooms = group_folders(&groups, &mounts).into_iter().filter_map(|(version, folder)| {
            let read = |name: &str| read_to_string(folder.join(name)).unwrap_or_default();
            let (limits, taken): (&[&str], _) = match version {
                Version::One => (&["memory.limit_in_bytes"], "memory.usage_in_bytes"),
                Version::Two => (&["memory.max", "memory.high"], "memory.current"),
            };
            let limits: Vec<String> = limits.iter().map(|name| read(name)).collect();
            let taken = if used { read(taken) } else { String::new() };
            room(limits.iter().map(String::as_str), &taken, &read("memory.stat"))
        });
        rooms.min()
    }

    /// What `ulimit -v` and `ulimit -d` leave; or (not `used`) what they allow.
    fn limit_room(used: bool) -> Option<u64> {
        let status = if used { read_to_string("/proc/self/status").ok()? } else { String::new() };
        limits_room(&read_to_string("/proc/self/limits").ok()?, &status)
    }
}

/// Tells whether the shell limits the address space: `ulimit -v`.
#[cfg(target_os = "linux")]
pub fn is_address_space_limited() -> bool {
    std::fs::read_to_string("/proc/self/limits").is_ok_and(|limits| soft_limit(&limits, "Max address space").is_some())
}

/// Returns a limit of `/proc/self/limits`; `None` where it is unlimited.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next())?.parse().ok()
}

/// Returns what the shell's limits leave; `None` where there are none.
/// - `limits`, `status`: the files of these names in `/proc/self`.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn limits_room(limits: &str, status: &str) -> Option<u64> {
    let of =
        |limit: &str, used: &str| Some(soft_limit(limits, limit)?.saturating_sub(entry(status, used).unwrap_or(0)));
    [of("Max address space", "VmSize:"), of("Max data size", "VmData:")].into_iter().flatten().min()
}

/// Of control groups: which of the two kinds a hierarchy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Returns the folders of the groups that this process is in, itself first and the outermost last, as far as they can be seen.
/// - `groups`: `/proc/self/cgroup`. `mounts`: `/proc/self/mountinfo`.
/// - Source: Linux `Documentation/filesystems/proc.rst` (3.5) and cgroups(7).
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn group_folders(groups: &str, mounts: &str) -> Vec<(Version, PathBuf)> {
    let mut folders = vec![];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let version = match controllers {
            "" => Version::Two,
            names if names.split(',').any(|name| name == "memory") => Version::One,
            _ => continue,
        };
        for (root, mount) in mounts.lines().filter_map(|line| mounted(line, version)) {
            // in a container the mount begins at its own group, and so may the path
            let inner = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            let inner = if inner.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { inner };
            let mut folder: PathBuf = Path::new(mount).join(inner).components().collect();
            while folder.starts_with(mount) {
                folders.push((version, folder.clone()));
                if !folder.pop() {
                    break;
                }
            }
        }
    }
    folders
}

/// Returns root and place of a mounted hierarchy of groups that counts memory.
fn mounted(line: &str, version: Version) -> Option<(&str, &str)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut system = system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1)?);
    let fits = match version {
        Version::One => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        Version::Two => kind == "cgroup2",
    };
    let mut mount = mount.split(' ').skip(3);
    fits.then_some((mount.next()?, mount.next()?))
}

/// Returns what a group leaves: the least of its limits less what is in use and cannot be had back at once, which pages of files can
/// that nobody has looked at for a while.
/// - `used`: bytes. `stat`: `memory.stat`. `None` where nothing limits it.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn room<'a>(limits: impl Iterator<Item = &'a str>, used: &str, stat: &str) -> Option<u64> {
    /// Of version 1, a limit that is none: the largest number of whole pages, whatever their size.
    const NONE: u64 = i64::MAX as u64 - (1 << 20);
    let limit = limits.filter_map(|text| text.trim().parse::<u64>().ok()).min().filter(|limit| *limit < NONE)?;
    // version 1 counts the groups within under `total_`
    let files = ["total_inactive_file ", "inactive_file "].into_iter();
    let files =
        files.flat_map(|name| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()));
    let used = used.trim().parse::<u64>().unwrap_or(0).saturating_sub(files.max().unwrap_or(0));
    Some(limit.saturating_sub(used))
}

/// The fewest bytes that are taken for bytes where no unit is given: fewer are gigabytes that lack theirs.
const LEAST_BARE: f64 = 1048576.0;

/// `8GiB`, `8 GB`, `512MiB`, `8G` (as GiB), or plain bytes, to bytes.
/// - Errors on small numbers without a unit, which would be bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 12] = [
        ("kib", 1024.0),
        ("mib", 1048576.0),
        ("gib", 1073741824.0),
        ("tib", 1099511627776.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("k", 1024.0),
        ("m", 1048576.0),
        ("g", 1073741824.0),
        ("b", 1.0),
    ];
    let wrong = || "expected a size such as 8GiB, 8GB, 512MiB or a number of bytes".to_string();
    let lower = text.trim().to_lowercase();
    let unit = UNITS.iter().find(|(unit, _)| lower.ends_with(unit));
    let (number, factor) = match unit {
        Some((unit, factor)) => (&lower[..lower.len() - unit.len()], *factor),
        None => (lower.as_str(), 1.0),
    };
    let number = number.trim().parse::<f64>().map_err(|_| wrong())?;
    let bytes = number * factor;
    if !(bytes.is_finite() && (1.0..=1e18).contains(&bytes)) {
        return Err(wrong());
    }
    if unit.is_none() && bytes < LEAST_BARE {
        return Err(format!("without a unit it is bytes; write {number}GiB or {number}MiB"));
    }
    Ok(bytes as u64)
}

/// Tells whether `REEL_GPU=plain` turns the GPU's own kernels off, for comparing them with candle's operations.
pub fn is_gpu_plain() -> bool {
    static PLAIN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *PLAIN.get_or_init(|| std::env::var("REEL_GPU").is_ok_and(|value| value == "plain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn work_is_counted() {
        let begun = (std::time::Instant::now(), cpu_seconds().unwrap());
        let mut sum = 0u64;
        while begun.0.elapsed() < std::time::Duration::from_millis(60) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(cpu_seconds().unwrap() > begun.1, "{begun:?}");
    }

    #[test]
    fn this_machine_has_memory_and_disk() {
        assert!(!cfg!(target_os = "linux") || free_memory().is_some_and(|free| free > 1 << 20));
        assert!(!cfg!(target_os = "linux") || all_memory() > free_memory());
        assert!(!cfg!(target_os = "linux") || peak_memory().is_some_and(|peak| peak > 1 << 20));
        assert!(!cfg!(unix) || free_disk(Path::new("no/such/folder/a.mp4")).is_some_and(|free| free > 0));
    }

    #[test]
    fn sizes_are_read() {
        let sizes = ["8GiB", "8gb", "512 MiB", "1.5G", "1234567", "7b"].map(|text| parse_size(text).unwrap());
        assert_eq!(sizes, [8 << 30, 8_000_000_000, 512 << 20, 3 << 29, 1_234_567, 7]);
        for bare in ["8", "1.5", "1048575"] {
            let error = parse_size(bare).unwrap_err();
            assert!(error.contains(&format!("write {bare}GiB")), "{error}");
        }
        for wrong in ["", "GiB", "-1GB", "8GBs", "inf", "nan", "0", "1e30"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn entries_are_in_bytes() {
        let text = "MemTotal:       32618304 kB\nMemFree:         1234 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!((entry(text, "MemAvailable:"), entry(text, "VmHWM:")), (Some(20_971_520_000), None));
    }

    #[test]
    fn limits_of_the_shell_leave_what_is_not_in_use() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max data size             unlimited            unlimited            bytes     \n\
            Max stack size            8388608              unlimited            bytes     \n\
            Max address space         3072000000           unlimited            bytes     \n";
        let status = "VmPeak:\t  200000 kB\nVmSize:\t  100000 kB\nVmData:\t   50000 kB\n";
        assert_eq!(limits_room(limits, status), Some(3_072_000_000 - 102_400_000));
        assert_eq!(limits_room(&limits.replace("3072000000", "unlimited "), status), None);
        assert_eq!(
            limits_room(&limits.replace("Max data size             unlimited", "Max data size 60000000"), status),
            Some(8_800_000)
        );
    }

    fn folders(groups: &str, mounts: &str) -> Vec<(Version, String)> {
        let folders = group_folders(groups, mounts).into_iter();
        folders.map(|(version, folder)| (version, folder.to_str().unwrap().to_string())).collect()
    }

    /// A desktop with systemd: version 2, groups within groups.
    #[test]
    fn groups_of_version_2_are_walked_up() {
        let groups = "0::/user.slice/user-1000.slice/run-r7.scope\n";
        let mounts = "25 30 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw\n\
            34 23 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        let of = |path: &str| (Version::Two, path.to_string());
        assert_eq!(
            folders(groups, mounts),
            [
                of("/sys/fs/cgroup/user.slice/user-1000.slice/run-r7.scope"),
                of("/sys/fs/cgroup/user.slice/user-1000.slice"),
                of("/sys/fs/cgroup/user.slice"),
                of("/sys/fs/cgroup")
            ]
        );
        // in a container with a name space of its own
        assert_eq!(folders("0::/\n", mounts), [of("/sys/fs/cgroup")]);
        // entered from outside
        assert_eq!(folders("0::/../other\n", mounts), [of("/sys/fs/cgroup")]);
    }

    /// Docker and Slurm on older systems: version 1, whose mount in a container begins at the container's group.
    #[test]
    fn groups_of_version_1_are_found_in_containers() {
        let groups = "12:pids:/docker/4f2a\n5:cpu,cpuacct:/docker/4f2a\n4:memory:/docker/4f2a\n0::/docker/4f2a\n";
        let mounts = "705 704 0:33 /docker/4f2a /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:15 - cgroup cgroup rw,cpu,cpuacct\n\
            709 704 0:37 /docker/4f2a /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:19 - cgroup cgroup rw,memory\n";
        assert_eq!(folders(groups, mounts), [(Version::One, "/sys/fs/cgroup/memory".to_string())]);
        let groups = "11:memory:/slurm/uid_1001/job_77/step_0\n";
        let mounts = "40 31 0:35 / /sys/fs/cgroup/memory rw,relatime shared:20 - cgroup cgroup rw,memory\n";
        let found: Vec<String> = folders(groups, mounts).into_iter().map(|(_, folder)| folder).collect();
        assert_eq!(found[0], "/sys/fs/cgroup/memory/slurm/uid_1001/job_77/step_0");
        assert_eq!((found.len(), found[4].as_str()), (5, "/sys/fs/cgroup/memory"));
        assert!(folders("garbage\n4:memory\n:::\n", "x - y\n\n - cgroup\n").is_empty());
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_is_in_use() {
        let (gib, stat) = (1u64 << 30, "anon 5368709120\nfile 1073741824\ninactive_file 1073741824\nactive_file 0\n");
        let six = (6 * gib).to_string();
        let room = |limits: &[&str], used: &str, stat: &str| room(limits.iter().copied(), used, stat);
        assert_eq!(room(&["8589934592\n", "max\n"], &six, stat), Some(3 * gib));
        assert_eq!(room(&["max\n", "7516192768\n"], &six, stat), Some(2 * gib));
        assert_eq!(room(&["max\n", "max\n"], &six, stat), None);
        assert_eq!(room(&["", ""], "", ""), None); // the outermost group has no such files
        // version 1: no limit is a number, and groups within count under other names
        assert_eq!(room(&["9223372036854771712\n"], &six, ""), None);
        let stat =
            "cache 0\ninactive_file 4096\nhierarchical_memory_limit 8589934592\ntotal_inactive_file 2147483648\n";
        assert_eq!(room(&["8589934592\n"], &six, stat), Some(4 * gib));
        assert_eq!(room(&["1073741824\n"], &six, "inactive_file no\n"), Some(0));
    }
}
