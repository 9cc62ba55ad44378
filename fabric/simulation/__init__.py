"""The gate on a virtual clock: other people's traces, or a journal of one's own, through the same decisions that run live.

`world` moves time and knows what a job's process would do (run, save, be restored, fail); `gate_policy` puts the gate into
it, `peers` other schedulers. Knows no Ray and no network; what it reads are files, what it writes is a report.
"""
