from tests.simulation.stage import Stage


async def test_pull_without_a_result_is_retried_with_backoff(stage: Stage):
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


async def test_image_of_an_unobserved_pull_is_ours(stage: Stage):
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


async def test_image_present_before_an_interrupted_pull_is_foreign(stage: Stage):
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


async def test_refused_pull_claims_no_image(stage: Stage):
    stage.write({"alice": {"image": "elsewhere:1"}})
    await stage.start()
    await stage.after(5)
    assert stage.statuses() == {"alice": "ERROR"}
    assert stage.store.fact("pulls") is None
    await stage.edit({})
    stage.host.images.add("elsewhere:1")
    await stage.after(60)
    assert not stage.store.images
