# Reads the output of `go test -v` and prints what failed with what it said: a log's end is all that some readers see of it.
/^=== PAUSE / { next }
/^=== / { test = $3; next }
/^ *--- (PASS|SKIP|FAIL): / {
	if ($2 == "FAIL:") printf "%s\n%s", $0, said[$3]
	delete said[$3]
	next
}
/^FAIL\t/ { # also what was said outside of a test that failed: a panic, a race, a goroutine left over
	for (name in said) printf "%s", said[name]
	print
}
/^(ok|FAIL)\t/ { delete said; test = ""; next }
/ level=(DEBUG|INFO) / { next }
{ said[test] = said[test] substr($0, 1, 400) "\n" }
