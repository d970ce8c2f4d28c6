use super::*;

fn scratch() -> Scratch {
    Scratch::create("reel-files").unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn put(file: &AtomicFile, text: &str) {
    file.writer().unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let folder = scratch();
    let path = folder.path().join("a.gif");
    let files = [false, false, true].map(|force| AtomicFile::create(&path, force).unwrap());
    files.iter().zip(["one", "two", "three"]).for_each(|(file, text)| put(file, text));
    assert_eq!(names(folder.path()).len(), 3);
    let [one, two, three] = files;
    one.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one");
    assert!(two.commit().is_err_and(|e| e.to_string().contains("--force")));
    assert_eq!(fs::read(&path).unwrap(), b"one");
    three.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"three");
    AtomicFile::create(&path, true).unwrap().commit_or_keep().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"three");
    assert_eq!(names(folder.path()), ["a.gif"]);
}

/// Another process may be number 1 too: what it writes stays, whatever it is called.
#[test]
fn files_of_others_are_never_removed() {
    let folder = scratch();
    let path = folder.path().join("a.gif");
    let foreign = [format!(".a.gif.{}.partial", std::process::id()), "a.partial".to_string()];
    foreign.iter().for_each(|name| fs::write(folder.path().join(name), "half").unwrap());
    drop(AtomicFile::create(&path, false).unwrap());
    AtomicFile::create(&path, false).unwrap().commit().unwrap();
    sweep(folder.path());
    foreign.iter().for_each(|name| assert!(folder.path().join(name).exists(), "{name}"));
}

#[test]
fn a_signal_leaves_nothing_unfinished() {
    let folder = scratch();
    fs::create_dir(folder.path().join("frames")).unwrap();
    let paths = ["a", "frames/0.png"].map(|name| folder.path().join(name));
    paths.iter().for_each(|path| fs::write(path, "half").unwrap());
    let mut set = BTreeSet::from([paths[0].clone(), folder.path().join("frames")]);
    remove_all(&mut set);
    assert!(set.is_empty() && names(folder.path()).is_empty());
}

#[test]
fn long_names_still_fit() {
    let folder = scratch();
    AtomicFile::create(&folder.path().join(format!("{}.gif", "ä".repeat(120))), false).unwrap().commit().unwrap();
    assert_eq!(names(folder.path()).len(), 1);
}

#[test]
#[cfg(unix)]
fn new_files_and_replaced_ones_have_the_permissions_of_any() {
    use std::os::unix::fs::PermissionsExt;
    let folder = scratch();
    let path = |name: &str| folder.path().join(name);
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o7777;
    fs::write(path("plain"), "").unwrap();
    AtomicFile::create(&path("new"), false).unwrap().commit().unwrap();
    assert_eq!(mode("new"), mode("plain"));
    fs::set_permissions(path("plain"), fs::Permissions::from_mode(0o640)).unwrap();
    AtomicFile::create(&path("plain"), true).unwrap().commit().unwrap();
    assert_eq!(mode("plain"), 0o640);
}

#[test]
#[cfg(unix)]
fn links_are_followed_and_pipes_refused() {
    let folder = scratch();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("there")).unwrap();
    std::os::unix::fs::symlink("there/a.gif", path("link")).unwrap();
    for text in ["one", "two"] {
        let file = AtomicFile::create(&path("link"), true).unwrap();
        put(&file, text);
        file.commit().unwrap();
        assert_eq!(fs::read(path("there/a.gif")).unwrap(), text.as_bytes());
        assert!(path("link").is_symlink());
    }
    assert!(AtomicFile::create(&path("link"), false).unwrap().commit().is_err());
    for special in ["there", "/dev/null"] {
        let refused = AtomicFile::create(&path(special), true).map(drop);
        assert!(refused.is_err_and(|e| e.to_string().contains("fix:")), "{special}");
    }
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let folder = scratch();
    let target = folder.path().join("out");
    let fill = |count: usize| {
        let made = AtomicFolder::create(&target).unwrap();
        (0..count).for_each(|i| made.write(Path::new(&i.to_string()), |out| Ok(out.write_all(b"new")?)).unwrap());
        made
    };
    drop(fill(2));
    assert!(names(folder.path()).is_empty());
    let made = fill(2);
    assert!(!target.exists());
    made.commit(false, &[]).unwrap();
    assert_eq!(names(&target), ["0", "1"]);
    // into one that is there: all or none
    fs::write(target.join("mine"), "").unwrap();
    assert!(fill(3).commit(false, &[]).is_err());
    assert_eq!(names(&target), ["0", "1", "mine"]);
    fill(1).commit(true, &[target.join("0"), target.join("1")]).unwrap();
    assert_eq!(names(&target), ["0", "mine"]);
    assert_eq!(names(folder.path()), ["out"]);
    // a folder that came meanwhile is not replaced
    let path = folder.path().join("late");
    let made = AtomicFolder::create(&path).unwrap();
    fs::write(&path, "another's").unwrap();
    assert!(made.commit(true, &[]).is_err());
    assert_eq!(names(folder.path()), ["late", "out"]);
}

#[test]
fn only_old_files_that_nobody_writes_are_swept() {
    let folder = scratch();
    let old = |name: &str| {
        let file = File::create(folder.path().join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * STALE).unwrap();
        file
    };
    let held = old(".held.gguf.abcdef.partial");
    held.lock().unwrap();
    drop((old(".left.gguf.abcdef.partial"), old("kept.gguf")));
    fs::write(folder.path().join(".young.gguf.abcdef.partial"), "").unwrap();
    sweep(folder.path());
    let left = [".held.gguf.abcdef.partial", ".young.gguf.abcdef.partial", "kept.gguf"];
    assert_eq!(names(folder.path()), left);
}

#[test]
fn what_would_replace_an_input_is_known() {
    let folder = scratch();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("ck")).unwrap();
    ["ck/a", "b"].iter().for_each(|name| fs::write(path(name), "").unwrap());
    assert!(would_replace(&path("ck/a"), &path("ck")) && would_replace(&path("b"), &path("b")));
    assert!(!would_replace(&path("ck/new"), &path("ck")) && !would_replace(&path("b"), &path("ck")));
    #[cfg(unix)]
    {
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(path(to), path(from)).unwrap();
        link("ck/a", "link");
        link("b", "ck/out");
        assert!(would_replace(&path("link"), &path("ck")) && would_replace(&path("ck/out"), &path("ck")));
    }
}

#[test]
fn small_files_are_regular_and_small() {
    let folder = scratch();
    let path = folder.path().join("a.json");
    fs::write(&path, "12345").unwrap();
    assert_eq!(read_small_text(&path, 5).unwrap(), "12345");
    let error = |path: &Path| format!("{:#}", read_small_text(path, 4).unwrap_err());
    assert!(error(&path).contains("more than 4 bytes") && error(&path).contains("a.json"));
    assert!(error(folder.path()).contains("it is a folder"));
    if cfg!(unix) {
        assert!(error(Path::new("/dev/zero")).contains("a pipe or a device"));
    }
    fs::write(&path, b"\xff").unwrap();
    assert!(error(&path).contains("no text"));
    assert!(is_missing(&read_small(&folder.path().join("none"), 4).unwrap_err()));
    assert!(is_missing(&read_small(&path.join("none"), 4).unwrap_err()));
    assert!(!is_missing(&read_small(folder.path(), 4).unwrap_err()));
}
