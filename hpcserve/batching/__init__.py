"""OpenAI's Files and Batches: a million prompts, each done exactly once.

===========================  =====================================================================
`window`                     completion windows as clients write them
`places`                     where files lie below the state folder
`files`, `uploads`           the Files API: uploads, registered paths, expiry
`batches`                    the Batches API: create, retrieve, list, cancel
`input_file`                 an input that must be what it was when its owner handed it in
`lines`, `envelope`          an input as blocks of lines; checking one line
`duplicates`                 finding a custom_id twice in eight bytes a line
`reading`, `intake`          one pass over a file; enqueues its lines, all or none
`payload`                    the bodies of leased lines
`leasing`, `durations`       the port `Work`: lease, settle, release; how long requests last
`segments`, `settling`       results on disk, then in the ledger; several agents' in one go
`result_rows`                results in input order, out of the segments
`result_file`, `manifest`    what a batch leaves: its files, and where they come from
`finalise`, `results`        writes all that at the end; streams what is there before
`steps`, `worker`            the loop of the leading controller: observe, decide, act
`estimates`, `pace`          when batches will be done, and how good that was; `estimate_records`
`again`                      a new batch of what was not answered
`tables`, `template`         rows of CSV, TSV, JSONL and Parquet as batch lines (the command line)
`losses`, `sweep`            taking leases back; removing files that nobody needs
`services`                   all of it joined, for `wiring`
===========================  =====================================================================

Payload bytes stay in files; the ledger knows states, offsets and lengths. Whatever a crash cuts off
is done again from the ledger, and comes out the same.
"""
