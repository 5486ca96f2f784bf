# Names for the commands; each works typed by hand as well.
.PHONY: help run check short test race lint docs-check api ci bench

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: ## the example server, http://localhost:8080/
	go run -C examples ./webserver

check: ## before each commit: lint, and the tests that need no redis-server, side by side
	@$(MAKE) --no-print-directory -j2 lint short

short:
	go test -short ./...

test: ## all tests; those that need redis-server say so when it is missing
	go test ./...

race: ## the same under the race detector
	go test -race ./...

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...

docs-check: ## tests of the pages: programs, links, generated parts
	go test -C docs ./...

api: ## the exported API beside that of the last tag
	bash tools/api

ci: ## everything that must hold before a change lands
	bash .ci/run

bench: ## benchmarks of the packages, for benchstat
	go test -run '^$$' -bench . -benchmem -count 8 ./...
