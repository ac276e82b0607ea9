//! Models in parts on the devices of others.

use flotilla_worker_core::residency::Part;

use super::*;
use crate::model::OpenedWeights;

/// Devices with an engine each.
struct Devices {
    engines: Vec<Engine>,
    shared: Vec<SharedDevice>,
}

fn devices(count: u32) -> Devices {
    let start = |index| {
        let threads = Arc::new(CpuThreads::new(std::num::NonZero::new(2).unwrap()));
        let (engine, _ended) = Engine::start(index, Arc::clone(&threads)).unwrap();
        let shared = engine.share(threads);
        (engine, shared)
    };
    let (engines, shared) = (0..count).map(start).unzip();
    Devices { engines, shared }
}

/// Parts that begin at these layers, on these devices.
fn places(opened: &OpenedModel, starts: &[u32], devices: &[&SharedDevice], kv_blocks: u64) -> Vec<PartPlace> {
    let OpenedWeights::Decoder { plan, .. } = &opened.weights else {
        panic!("demo models make text")
    };
    let layers = u32::try_from(plan.layers().end).unwrap();
    let ends = starts[1..].iter().copied().chain([layers]);
    let parts = starts.iter().zip(ends).zip(devices);
    parts
        .map(|((start, end), device)| PartPlace {
            part: Part {
                first_layer: *start,
                layers: end - start,
                kv_blocks,
            },
            device: SharedDevice::clone(device),
        })
        .collect()
}

async fn in_parts(
    folder: &str,
    first: &Engine,
    starts: &[u32],
    devices: &[&SharedDevice],
    kv_blocks: u64,
) -> Loaded {
    let opened = OpenedModel::open(&demo_folder(folder), &AllHere, demo_limits(), None, None).unwrap();
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    let places = places(&opened, starts, devices, kv_blocks);
    let in_memory = load_parts(&opened, &places, Vec::new(), &watch).unwrap();
    let model = ModelName::new(folder).unwrap();
    let shared = devices.iter().copied().cloned();
    let (engine, _ended) = first.start_parts(shared.collect(), kv_blocks).unwrap();
    engine.install(model.clone(), in_memory).await.unwrap();
    Loaded {
        engine,
        model,
        opened,
    }
}

async fn whole(folder: &str, engine: &Engine) -> Loaded {
    let opened = OpenedModel::open(&demo_folder(folder), &AllHere, demo_limits(), None, None).unwrap();
    let model = ModelName::new(folder).unwrap();
    engine.resize_kv(4).await.unwrap();
    let loaded = load_opened(&opened);
    engine.install(model.clone(), loaded).await.unwrap();
    Loaded {
        engine: engine.clone(),
        model,
        opened,
    }
}

#[tokio::test]
async fn model_in_parts_adds_as_a_whole_one() {
    let Devices { engines, shared } = devices(3);
    for starts in [vec![0, 1], vec![0, 3], vec![0, 1, 3]] {
        let on: Vec<&SharedDevice> = shared.iter().take(starts.len()).collect();
        let loaded = in_parts("adder", &engines[0], &starts, &on, 16).await;
        let run = loaded.engine.join(loaded.sum("123+456=", 64)).await.unwrap();
        let made = everything(run).await;
        assert_eq!(loaded.text(&made), "579", "parts from {starts:?} on");
        assert_eq!(made.last(), Some(&Made::Ended(RunEnd::Stop)));
    }
}

/// Each visits the devices in the order of the other one, and whole models run on both in between.
#[tokio::test]
async fn models_in_parts_that_share_devices_and_whole_ones_beside_them_all_go_on() {
    let Devices { engines, shared } = devices(2);
    let one = in_parts("adder", &engines[0], &[0, 2], &[&shared[0], &shared[1]], 64).await;
    let other = in_parts("sorter", &engines[1], &[0, 1], &[&shared[1], &shared[0]], 64).await;
    let beside = [
        whole("reverser", &engines[0]).await,
        whole("adder", &engines[1]).await,
    ];
    let cases = [
        (&one, "123+456=", "579"),
        (&other, "sort 52914=", "12459"),
        (&beside[0], "reverse hello=", "olleh"),
        (&beside[1], "999+1=", "1000"),
    ];
    let mut runs = Vec::new();
    for _ in 0..20 {
        for (loaded, prompt, right) in cases {
            let run = loaded.engine.join(loaded.sum(prompt, 64)).await.unwrap();
            runs.push((loaded, run, right));
        }
    }
    for (loaded, run, right) in runs {
        assert_eq!(loaded.text(&everything(run).await), right);
    }
}

#[tokio::test]
async fn requests_beyond_the_blocks_of_a_model_in_parts_wait_and_lose_nothing() {
    let Devices { engines, shared } = devices(2);
    let loaded = in_parts("adder", &engines[0], &[0, 2], &[&shared[0], &shared[1]], 2).await;
    let mut runs = Vec::new();
    for (prompt, sum) in [
        ("123+456=", "579"),
        ("1+1=", "2"),
        ("999+1=", "1000"),
        ("20+22=", "42"),
    ] {
        runs.push((loaded.engine.join(loaded.sum(prompt, 64)).await.unwrap(), sum));
    }
    for (run, sum) in runs {
        assert_eq!(loaded.text(&everything(run).await), sum);
    }
}

#[tokio::test]
async fn parts_that_were_kept_in_host_memory_come_back_and_read_no_file() {
    let Devices { engines, shared } = devices(2);
    let on = [&shared[0], &shared[1]];
    let loaded = in_parts("adder", &engines[0], &[0, 1], &on, 16).await;
    let images = loaded.engine.unload(loaded.model.clone(), Keep::InHost).await;
    let images = images.unwrap().expect("weights can be kept on these devices");
    assert_eq!(images.len(), 2);
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    let places = places(&loaded.opened, &[0, 1], &on, 16);
    let again = load_parts(&loaded.opened, &places, images, &watch).unwrap();
    assert_eq!(watch.placed_bytes(), 0);
    loaded.engine.install(loaded.model.clone(), again).await.unwrap();
    let run = loaded.engine.join(loaded.sum("123+456=", 64)).await.unwrap();
    assert_eq!(loaded.text(&everything(run).await), "579");
}

/// Nobody is to blame for a device: the request goes on elsewhere, without a strike.
#[tokio::test]
async fn requests_of_a_model_in_parts_learn_that_it_is_gone_when_one_of_its_devices_breaks() {
    let Devices { engines, shared } = devices(2);
    let loaded = in_parts("adder", &engines[0], &[0, 2], &[&shared[0], &shared[1]], 16).await;
    let fault = "it computes wrong sums".to_owned();
    engines[1].command(Command::Break { fault }).await.unwrap();
    engines[1].commands.closed().await;
    let run = loaded.engine.join(loaded.sum("123+456=", 64)).await.unwrap();
    let made = timeout(PATIENCE, everything_or_nothing(run)).await.unwrap();
    assert!(
        matches!(made.last(), None | Some(Made::Ended(RunEnd::ModelGone))),
        "{made:?}"
    );
    timeout(PATIENCE, loaded.engine.commands.closed()).await.unwrap();
    assert!(loaded.engine.has_ended() && !engines[0].has_ended());
}

async fn everything_or_nothing(mut run: Run) -> Vec<Made> {
    let mut made = Vec::new();
    loop {
        let before = made.len();
        run.take(&mut made).await;
        if made.len() == before || matches!(made.last(), Some(Made::Ended(_))) {
            return made;
        }
    }
}
