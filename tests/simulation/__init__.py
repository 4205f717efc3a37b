"""A seeded, deterministic world in which the real dispatcher, record and job watch run, several at once.

``world.simulate(seed)`` runs one such world to its end and raises with its history when an invariant breaks. Everything
follows from the seed: one thread, one clock, one source of chance. The services are those of ``tests.support.memory``.

::

    scheduler    time, programs as coroutines that take turns at each call of a service, and what goes wrong then
    queues       W&B: leases of any length, runs that show up late, lost answers
    jobs         Vertex AI: what becomes of CustomJobs, lists that lag behind
    objects      the bucket: who writes the lock and the ledger
    invariants   what must hold at every step and in the end
    people       what people and other agents do, also when it hurts most
    world        deployments, Pub/Sub; puts everything together
    graphql      the server that the product's own W&B client reaches in some worlds
    soak         many worlds, and what they covered
    mutations    defects of the product that must be found
    edits        the same as one expression of the source that is replaced, and which worlds find it
"""
