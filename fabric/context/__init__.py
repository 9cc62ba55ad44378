"""What a job's own code can ask of the fabric: who it is, whether it should stop, and a place for its state.

    from fabric import context

    job = context.current()
    state = pickle.loads(saved) if (saved := job.load()) else start()
    while not state.done:
        state.step()
        if job.stop_requested:
            job.save(pickle.dumps(state), step=state.steps)
            job.park()

Outside the fabric `current()` is a job that is never asked to stop, remembers nothing and has one rank, so the same
script runs unchanged on a laptop. It does not know Ray, nor where the archive is.

In any process of a job's script or command `current()` links to the job over the socket that FABRIC_CONTEXT names; where a
launcher such as `torchrun` has made ranks, each is the rank that its environment tells of.
"""

from fabric.context.job import EXIT_SAVED, LINK_VARIABLE, REPORT_S, Context, Place, Saved, current, enter

__all__ = ["EXIT_SAVED", "LINK_VARIABLE", "REPORT_S", "Context", "Place", "Saved", "current", "enter"]
