from tests.simulation.stage import Stage


async def test_a_pull_that_brings_nothing_is_tried_again_with_backoff(stage: Stage):
    async def bring_nothing(image: str, _progress: object) -> None:
        stage.engine.calls.append(("pull", image))
        await stage.after(0.1)

    stage.engine.pull = bring_nothing
    stage.write({"alice": {"image": "elsewhere:1"}})
    await stage.start()
    await stage.after(120)
    assert stage.statuses() == {"alice": "ERROR"}
    assert stage.engine.count("pull") < 12
    stage.host.images.add("elsewhere:1")
    await stage.after(61)
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_an_image_whose_pull_was_seen_by_nobody_is_ours(stage: Stage):
    stage.host.registry.add("elsewhere:1")
    stage.engine.answering["pull"] = 60.0
    stage.write({"alice": {"image": "elsewhere:1"}})
    await stage.start()
    await stage.after(10)
    assert "elsewhere:1" in stage.host.images
    assert not stage.store.images
    await stage.crash()
    stage.engine.answering.clear()
    await stage.start()
    await stage.after(60)
    assert {image.reference for image in stage.store.images.values()} == {"elsewhere:1"}
    assert stage.store.fact("pulls") is None


async def test_an_image_that_was_there_when_its_pull_was_cut_off_is_not_ours(stage: Stage):
    stage.host.images.add("elsewhere:1")
    stage.host.registry.add("elsewhere:1")
    stage.engine.latency["pull"] = 60.0
    stage.write({"alice": {"image": "elsewhere:1", "pull": "always"}})
    await stage.start()
    await stage.after(10)
    assert stage.engine.count("pull") == 1
    await stage.crash()
    stage.engine.latency.clear()
    await stage.start()
    await stage.after(60)
    assert stage.statuses() == {"alice": "RUNNING"}
    assert not stage.store.images


async def test_a_pull_that_was_refused_makes_nothing_ours(stage: Stage):
    stage.write({"alice": {"image": "elsewhere:1"}})
    await stage.start()
    await stage.after(5)
    assert stage.statuses() == {"alice": "ERROR"}
    assert stage.store.fact("pulls") is None
    await stage.edit({})
    stage.host.images.add("elsewhere:1")
    await stage.after(60)
    assert not stage.store.images
