"""What a worker of page files has done."""


def ended(worker, n):
    """The next n completions."""
    done = []
    while len(done) < n:
        worker.wait(10)
        news = worker.poll()
        assert news, "nothing ended in ten seconds"
        done += news
    return done
