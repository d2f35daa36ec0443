import threading

from flows.cores import Cores


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
