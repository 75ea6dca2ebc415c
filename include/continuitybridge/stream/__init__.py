"""The stream worker: claims messages as they come, runs whole plans in node processes, settles in groups.

Modules: `access` (keys and connections), … Knows no Airflow; what runs it there stands in the `airflow` room.
"""
