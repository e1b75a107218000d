"""Why a result is as it is: what each part of a workflow contributed."""
