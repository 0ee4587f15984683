"""OpenAI's Files and Batches: a million prompts, each done exactly once.

====================  ==========================================================================
`window`              completion windows as clients write them
`places`              where files lie below the state folder
`files`               the Files API: uploads, registered paths, expiry
`batches`             the Batches API: create, retrieve, list, cancel
`lines`, `envelope`   reading an input file; checking one line of it
`duplicates`          finding a custom_id twice in a few bytes a line
`intake`              validates a file and enqueues its lines, all or none
`segments`            where results are made durable, several agents' at a time
`payload`             the bodies of leased lines, out of an input that must not have changed
`leasing`             the port `Work`: lease, settle, release
`finalise`            output file, error file and manifest, in input order
`results`             what is finished so far, while a batch runs
`steps`, `worker`     the loop of the leading controller: observe, decide, act
`losses`, `sweep`     taking leases back; removing files that nobody needs
`services`            all of it joined, for `wiring`
====================  ==========================================================================

Payload bytes stay in files; the ledger knows states, offsets and lengths. Whatever a crash cuts off
is done again from the ledger, and comes out the same.
"""
