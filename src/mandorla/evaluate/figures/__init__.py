"""The figures of the report, one file per question: records beside chance, ceiling and control.

Every function takes a `Subject`, or its `Codes` alone; the first word of a record's name is the section of the report
that shows it. What the data cannot answer (no class label, no lesion) is left out.
"""
