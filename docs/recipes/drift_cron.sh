#!/bin/sh
# Once a day from cron: says nothing while all is well, mails the verdict (cron does) and leaves a report where it is not.
#
#   15 6 * * *  /opt/cam/drift_cron.sh /var/log/cam /etc/cam/baseline.json /var/www/cam
set -u
folder=$1 baseline=$2 reports=$3
said=$(onnxcam monitor drift "$folder" --baseline "$baseline" --window 1000 --fail-on drift 2>&1)
code=$?
[ "$code" -eq 0 ] && exit 0
echo "$said"
if [ "$code" -eq 5 ]; then
  onnxcam monitor report "$folder" --baseline "$baseline" --since 7d -o "$reports/drift-$(date -u +%Y%m%d).html"
fi
exit "$code"
