#!/usr/bin/env bash
# Runs `edgebench check` for action.yml: inputs come as environment variables, and nothing of them is evaluated.
set -euo pipefail

out="$(mktemp -d "${RUNNER_TEMP:-/tmp}/edgebench-check-XXXXXX")"
arguments=(--device "$DEVICE" --max-regression "$MAX_REGRESSION" --time-limit "$TIME_LIMIT")
while IFS= read -r path; do
  [ -z "$path" ] || arguments+=(--candidate "$path")
done <<< "$CANDIDATE"
while IFS= read -r path; do
  [ -z "$path" ] || arguments+=(--baseline "$path")
done <<< "$BASELINE"
[ -z "$HISTORY" ] || arguments+=(--history "$HISTORY")
read -r -a metrics <<< "$METRICS"
for metric in "${metrics[@]}"; do
  arguments+=(--metric "$metric")
done
read -r -a more <<< "$MORE"

code=0
edgebench check "${arguments[@]}" "${more[@]}" --junit "$out/junit.xml" --markdown "$out/summary.md" --json \
  > "$out/check.json" || code=$?

# A wrong command line exits with 2 as well, and bad input with 3: only a verdict has its reports.
status=error
if [ -s "$out/summary.md" ]; then
  case "$code" in
    0) status=pass ;;
    1) status=regression ;;
    2) status=undecided ;;
    3) status=broken ;;
  esac
  cat "$out/summary.md" >> "$GITHUB_STEP_SUMMARY"
fi
{
  echo "status=$status"
  echo "junit=$out/junit.xml"
  echo "json=$out/check.json"
} >> "$GITHUB_OUTPUT"
echo "edgebench check: $status"

case " regression error $FAIL_ON " in
  *" $status "*) exit "$([ "$code" -ne 0 ] && echo "$code" || echo 1)" ;;
esac
