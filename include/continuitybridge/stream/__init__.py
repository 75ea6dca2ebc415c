"""The stream worker: claims messages as they come, runs whole plans in node processes, settles in groups.

Modules: `worker` (the loops of one worker), `turns` (who is next), `lanes` (node processes), `settling`,
`listening`, `plans`, `destinations`, `access` (keys and connections), `health`, `process` (workers as processes),
`direct` (running messages where they are accepted).
Knows no Airflow; what runs it there stands in the `airflow` room.
"""
