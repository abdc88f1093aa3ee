//! The runner runs this test executable itself: [`child`] does what `CHILD` says.

use std::{collections::BTreeMap, env, fs, io::Write, process, thread};

use super::*;

/// No test, but what the tests below run.
#[test]
#[ignore = "run by the other tests"]
#[expect(
    clippy::zombie_processes,
    reason = "leaving one behind is what is tested"
)]
fn child() {
    match env::var("CHILD").as_deref() {
        Ok("pass") => {}
        Ok("fail") => panic!("told to fail"),
        Ok("hang") => thread::sleep(Duration::from_secs(60)),
        Ok("abort") => process::abort(),
        Ok("much") => {
            let line = [b'x'; 1023];
            for _ in 0..OUTPUT_LIMIT_BYTES / 512 {
                std::io::stdout().write_all(&line).unwrap();
                println!();
            }
            println!("the end");
            process::exit(7);
        }
        Ok("leave") => {
            // A grandchild in our group that holds our output.
            let grandchild = Command::new(env::current_exe().unwrap())
                .args(CHILD_ARGS)
                .env("CHILD", "hang")
                .spawn()
                .unwrap();
            println!("grandchild {}.", grandchild.id());
        }
        other => panic!("CHILD is {other:?}"),
    }
}

const CHILD_ARGS: [&str; 4] = [
    "--exact",
    "runner::tests::child",
    "--ignored",
    "--nocapture",
];

fn job(what: &str, kind: Kind) -> Job {
    Job {
        name: "job".to_owned(),
        path: env::current_exe().unwrap(),
        dir: env::temp_dir(),
        env: BTreeMap::from([("CHILD".to_owned(), what.to_owned())]),
        kind,
        launcher: Vec::new(),
    }
}

fn program(what: &str) -> Vec<Event> {
    let args = CHILD_ARGS.map(str::to_owned).into();
    let mut events = Vec::new();
    run(&[job(what, Kind::Program { args })], &mut |event| {
        events.push(event)
    });
    events
}

fn output_of(events: &[Event]) -> String {
    let parts = events.iter().filter_map(|event| match event {
        Event::Output { data, .. } => Some(&*data.0),
        _ => None,
    });
    String::from_utf8_lossy(&parts.collect::<Vec<_>>().concat()).into_owned()
}

fn captured(what: &str, limit: Duration) -> Ended {
    let kind = Kind::Tests {
        filters: Vec::new(),
        skip: Vec::new(),
    };
    run_captured(&job(what, kind), &CHILD_ARGS, limit).unwrap()
}

/// Waits until the process that `output` names has ended: it is gone, or a zombie
/// whose parent has not noticed.
fn grandchild_ends(output: &str) -> bool {
    let pid = output
        .split("grandchild ")
        .nth(1)
        .and_then(|rest| rest.split('.').next());
    let stat = format!("/proc/{}/stat", pid.expect("the child names it"));
    let ended = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    (0..200).any(|_| {
        thread::sleep(Duration::from_millis(20));
        ended()
    })
}

#[test]
fn each_end_is_told_apart() {
    let long = Duration::from_secs(60);
    for (what, want) in [
        ("fail", "exit status: 101"),
        ("abort", "signal: 6 (SIGABRT)"),
    ] {
        let ended = captured(what, long);
        assert!(ended.how().starts_with(want), "{what}: {}", ended.how());
        assert_ne!(ended.outcome(), Outcome::Passed);
    }
    assert_eq!(captured("pass", long).outcome(), Outcome::Passed);
}

#[test]
fn a_hanging_test_is_killed_and_its_threads_are_shown() {
    let start = Instant::now();
    let ended = captured("hang", Duration::from_millis(700));
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(ended.how().starts_with("hung"), "{}", ended.how());
    let output = String::from_utf8_lossy(&ended.output).into_owned();
    assert!(output.contains("threads when the limit passed"), "{output}");
    assert!(output.contains("sleeping"), "{output}");
}

#[test]
fn what_a_test_leaves_behind_is_killed_and_holds_up_nobody() {
    let start = Instant::now();
    let ended = captured("leave", Duration::from_secs(60));
    assert_eq!(ended.outcome(), Outcome::Passed);
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(grandchild_ends(&String::from_utf8_lossy(&ended.output)));

    let events = program("leave");
    assert!(start.elapsed() < Duration::from_secs(40));
    assert!(
        matches!(events.last(), Some(Event::ProgramEnded { code: 0, .. })),
        "{events:?}"
    );
    assert!(grandchild_ends(&output_of(&events)));
}

#[test]
fn of_much_output_a_test_shows_the_end_and_a_program_everything() {
    let ended = captured("much", Duration::from_secs(60));
    let output = String::from_utf8_lossy(&ended.output).into_owned();
    assert!(output.contains("bytes left out") && output.trim_end().ends_with("the end"));
    assert!(ended.output.len() as u64 <= OUTPUT_LIMIT_BYTES + 100);

    let events = program("much");
    assert!(matches!(
        events.last(),
        Some(Event::ProgramEnded { code: 7, .. })
    ));
    assert_eq!(
        output_of(&events).matches('x').count() as u64,
        OUTPUT_LIMIT_BYTES / 512 * 1023
    );
}

#[test]
fn a_signal_is_an_exit_code() {
    let events = program("abort");
    assert!(
        matches!(events.last(), Some(Event::ProgramEnded { code: 134, .. })),
        "{events:?}"
    );
}

#[test]
fn tests_are_listed_filtered_and_ignored_ones_skipped() {
    let filters = vec![
        "runner::tests::child".to_owned(),
        "only_the_function_name".to_owned(),
        "a_job_that_cannot_start".to_owned(),
    ];
    let skip = vec!["job_that".to_owned()];
    let mut events = Vec::new();
    run(
        &[job("fail", Kind::Tests { filters, skip })],
        &mut |event| events.push(event),
    );
    let named = |event: &Event| match event {
        Event::TestIgnored { name, .. } => format!("ignored {name}"),
        Event::TestStarted { name, .. } => format!("started {name}"),
        Event::TestEnded { outcome, .. } => format!("{outcome:?}"),
        other => format!("{other:?}"),
    };
    let want = [
        "started job::tests::only_the_function_name_asks_for_time",
        "Passed",
        "ignored runner::tests::child",
    ];
    assert_eq!(events.iter().map(named).collect::<Vec<_>>(), want);
}

#[test]
fn a_job_that_cannot_start_is_told() {
    let mut job = job("pass", Kind::Program { args: Vec::new() });
    job.path = "/nowhere/program".into();
    let mut events = Vec::new();
    run(&[job], &mut |event| events.push(event));
    let [Event::JobFailed { why, .. }] = &*events else {
        panic!("{events:?}");
    };
    assert!(why.contains("/nowhere/program"), "{why}");
}

#[test]
fn kept_files_are_told_in_parts() {
    let dir = env::temp_dir().join(format!("lab-init-{}", process::id()));
    fs::create_dir_all(dir.join("a")).unwrap();
    fs::write(dir.join("a/big"), vec![1; CHUNK_BYTES + 1]).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    let mut files: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    send_files(&dir, &mut |event| {
        let Event::File { name, data } = event else {
            panic!("{event:?}");
        };
        files.entry(name).or_default().push(data.0.len());
    })
    .unwrap();
    assert_eq!(files["a/big"], [CHUNK_BYTES, 1]);
    assert_eq!(files["empty"], [0]);
    fs::remove_dir_all(dir).unwrap();
}
