import threading
from pathlib import Path

from waiting import wait_until

from flows.cores import Cores, usable_cores
from hiar.parameters import load_params

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_no_more_cores_are_held_than_there_are():
    cores, held, most = Cores(3), [], []
    lock = threading.Lock()

    def work(wanted):
        for _ in range(50):
            with cores.take(wanted):
                with lock:
                    held.append(wanted)
                    most.append(sum(held))
                with lock:
                    held.remove(wanted)

    threads = [threading.Thread(target=work, args=(wanted,)) for wanted in (1, 1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 200
    assert max(most) <= 3


def test_a_stage_that_wants_more_than_the_machine_has_gets_all_of_it():
    with Cores(1).take(8):
        pass


def test_cores_come_back_when_the_work_fails():
    cores = Cores(1)
    for _ in range(2):
        try:
            with cores.take(1):
                raise RuntimeError
        except RuntimeError:
            pass


def test_all_that_fit_begin_when_cores_come_back():
    cores, begun = Cores(2), threading.Semaphore(0)
    together = threading.Barrier(2)

    def work():
        begun.release()
        with cores.take(1):
            together.wait(60)

    threads = [threading.Thread(target=work) for _ in range(2)]
    with cores.take(2):
        for thread in threads:
            thread.start()
        for _ in threads:
            begun.acquire()
        wait_until(lambda: len(cores._changed._waiters) == 2)
    for thread in threads:
        thread.join(60)
    assert together.n_waiting == 0
    assert not together.broken


def test_stages_run_side_by_side_on_cores_and_one_by_one_on_a_gpu(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    found = {}
    for gpu in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        for device in ("cpu", "auto"):
            runtime = load_params(PARAMS).runtime.model_copy(update={"device": device})
            found[gpu, device] = usable_cores(runtime)
    assert found == {(False, "cpu"): 3, (False, "auto"): 3, (True, "cpu"): 3, (True, "auto"): 1}
