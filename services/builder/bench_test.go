package builder

import (
	"fmt"
	"path/filepath"
	"testing"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// BenchmarkCacheHit deploys a commit that was built before: from request to built, beside the same image by its digest.
func BenchmarkCacheHit(b *testing.B) {
	w := newWorld(b)
	_, digest := w.guest()
	url := w.repository("www", map[string]string{"Dockerfile": "FROM scratch\n"})
	commit := w.git(filepath.Join(w.root, "www"), "rev-parse", "HEAD")
	s := w.replica()
	if _, err := w.gotBy(s, file(filepath.Join(w.root, "guest.spt"))); err != nil {
		b.Fatal(err)
	}
	source := func(ref string) string { return fmt.Sprintf(`{"git":{"url":%q,"ref":%q,"dockerfile":{}}}`, url, ref) }
	m, err := messages.DecodeRequest(deployKind, []byte(deployFrom(source(commit))))
	if err != nil {
		b.Fatal(err)
	}
	r, err := messages.Normalize("web", m.(*fulmarv1.DeployRequest))
	if err != nil {
		b.Fatal(err)
	}
	p, err := s.sources.plan(b.Context(), r.GetUnits()[0].GetImage(), w.log("web"))
	if err == nil {
		err = w.Builds.Put(b.Context(), p.key, &fulmarv1.BuildRecord{Image: digest, Commit: commit}, 0)
	}
	if err != nil {
		b.Fatal(err)
	}
	w.start()
	for name, image := range map[string]string{
		"commit": source(commit), "branch": source("main"), "digest": fmt.Sprintf(`{"object":%q}`, digest),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				generation := w.request(deployKind, "web", deployFrom(image))
				w.await(generation, messages.Accepted)
				e := w.await(generation, messages.Built)
				if u := e.GetDeployment().GetUnits()[0]; u.GetImage() != digest || name != "digest" && !u.GetBuild().GetCached() {
					b.Fatalf("built %v", u)
				}
				b.StopTimer()
				_, rev, err := w.Heads.Get(b.Context(), "web")
				if err == nil {
					err = w.Heads.Delete(b.Context(), "web", rev) // nobody retires what is built here
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
