from reconciler.core.priority import Priority


def test_users_are_first_and_resyncs_last():
    order = [Priority.USER, Priority.EVENT, Priority.TIMER, Priority.RESYNC]
    assert sorted(Priority) == order
