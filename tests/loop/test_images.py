from tests.loop.stage import Stage


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
