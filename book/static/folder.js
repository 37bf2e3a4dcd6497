// opened from a folder, pages may not be fetched: results of a search are then shown without their summaries
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
