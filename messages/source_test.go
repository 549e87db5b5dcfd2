package messages_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// source is a request of one unit with the image that is given.
func source(image string) string { return `{"units":[{"image":{` + image + `}}]}` }

func git(fields string) string {
	return source(`"git":{"url":"https://git.example/www",` + fields + `}`)
}

const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func TestNormalizeFillsInASource(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"docker":     {`"docker":{"image":"www:live"}`, `"docker":{"image":"www:live","path":"/unikernel","pull":"missing"}`},
		"oci":        {`"oci":{"layout":"/srv/www.tar","path":"/a/../b"}`, `"oci":{"layout":"/srv/www.tar","path":"/b"}`},
		"sha256_url": {`"url":"https://a.example/b","sha256_url":"https://a.example/b.sha256"`, `"url":"https://a.example/b","sha256_url":"https://a.example/b.sha256"`},
		"dockerfile": {
			`"git":{"url":"file:///srv/www.git","directory":"./src/","dockerfile":{"args":{"A":"b"}}}`,
			`"git":{"url":"file:///srv/www.git","directory":"src","limit":"1800s","dockerfile":{"file":"Dockerfile","path":"/unikernel","args":{"A":"b"}}}`,
		},
		"mirage": {
			`"git":{"url":"git@git.example:www","ref":"main","mirage":{"mirage":4}}`,
			`"git":{"url":"git@git.example:www","ref":"main","limit":"1800s","mirage":{"mirage":4,"config":"config.ml","target":"hvt"}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := messages.Normalize("web", parse(t, source(c.in)))
			if err != nil {
				t.Fatal(err)
			}
			want := parse(t, source(c.want)).GetUnits()[0].GetImage()
			if diff := cmp.Diff(want, got.GetUnits()[0].GetImage(), protocmp.Transform()); diff != "" {
				t.Errorf("normalized (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNormalizeNamesTheCulpritOfASource(t *testing.T) {
	for in, want := range map[string]string{
		source(`"docker":{}`):                                                                           `image: docker: image "" is not a reference`,
		source(`"docker":{"image":"a","pull":"often"}`):                                                 `docker: pull "often" is none of missing, always and never`,
		source(`"docker":{"image":"a","path":"b"}`):                                                     `docker: path "b" is not an absolute path`,
		source(`"docker":{"image":"a","path":"/b/.."}`):                                                 `docker: path "/" is no file`,
		source(`"docker":{"image":"a","credential":"A B"}`):                                             `docker: credential "A B": a name is made of`,
		source(`"oci":{"layout":"www"}`):                                                                `oci: layout "www" is not an absolute path`,
		source(`"file":"/a","sha256_url":"https://a.example"`):                                          `sha256_url belongs to a url`,
		source(`"url":"https://a.example/b","sha256_url":"ftp://a.example"`):                            `sha256_url "ftp://a.example" is not an http or https URL`,
		source(`"url":"https://a.example/b","sha256_url":"https://a.example/c","sha256":"` + sum + `"`): `only one of sha256 and sha256_url`,
		source(`"url":"https://ci:secret@a.example/b","sha256":"` + sum + `"`):                          `url https://xxxxx@a.example/b has a credential in it`,
		source(`"file":"/a","signatures":["` + strings.Repeat("x", 4097) + `"]`):                        `signatures: one has 4097 bytes, more than 4096`,
		source(`"file":"/a","signatures":["","","","","","","","",""]`):                                 `signatures: 9, more than 8`,
		source(`"git":{"url":"https://user:secret@git.example/www","dockerfile":{}}`):                   `git: url https://xxxxx@git.example/www has a credential in it`,
		source(`"git":{"url":"https://token@git.example/www","dockerfile":{}}`):                         `has a credential in it`,
		source(`"git":{"url":"/srv/www","dockerfile":{}}`):                                              `git: url "/srv/www" is not the https, http, ssh or file URL`,
		source(`"git":{"url":"ssh://-oProxyCommand=a/b","dockerfile":{}}`):                              `is not the https, http, ssh or file URL`,
		source(`"git":{"url":"ext::sh -c a","dockerfile":{}}`):                                          `is not the https, http, ssh or file URL`,
		git(`"ref":"--upload-pack=a","dockerfile":{}`):                                                  `ref "--upload-pack=a" is not the name of a branch, a tag or a commit`,
		git(`"directory":"../b","dockerfile":{}`):                                                       `directory "../b" is not a path within the repository`,
		git(`"limit":"25200s","dockerfile":{}`):                                                         `limit of 7h0m0s is not within 1s to 6h0m0s`,
		git(`"memory":3,"dockerfile":{}`):                                                               `memory of 3 MB is not within 4 to 1048576`,
		git(`"milli_cpus":1024001,"dockerfile":{}`):                                                     `milli_cpus 1024001 is more than 1024000`,
		git(`"ref":"main"`):                                                                                       `one of dockerfile and mirage must be given`,
		git(`"dockerfile":{"file":"/etc/passwd"}`):                                                                `dockerfile: file "/etc/passwd" is not a path within the repository`,
		git(`"dockerfile":{"args":{"a b":""}}`):                                                                   `"a b" is not the name of a build argument`,
		git(`"dockerfile":{"target":"a b"}`):                                                                      `target "a b" is not the name of a stage`,
		git(`"mirage":{}`):                                                                                        `mirage: version 0 is neither 3 nor 4`,
		git(`"mirage":{"mirage":4,"config":"../config.ml"}`):                                                      `mirage: config "../config.ml" is not a path within the repository`,
		git(`"mirage":{"mirage":4,"target":"xen"}`):                                                               `mirage: target "xen" is neither hvt nor spt`,
		git(`"mirage":{"mirage":4,"opam_repository":"main"}`):                                                     `opam_repository "main" is not a commit`,
		git(`"mirage":{"mirage":4,"instructions":["RUN a\nRUN b"]}`):                                              `is not one line`,
		git(`"mirage":{"mirage":4,"base":"a b"}`):                                                                 `base "a b" is not the reference of an image`,
		`{"watch":true,"units":[{"image":{"file":"/a"}}]}`:                                                        `watch: no source of the units can move`,
		`{"watch":true,"units":[{"image":{"docker":{"image":"a@` + digest + `"}}}]}`:                              `watch: no source of the units can move`,
		`{"cause":"` + strings.Repeat("c", 257) + `","units":[{"image":{"file":"/a"}}]}`:                          `cause: 257 bytes, more than 256`,
		source(`"git":{"url":"https://git.example/www","ref":"` + strings.Repeat("a", 40) + `","dockerfile":{}}`): "",
	} {
		_, err := messages.Normalize("web", parse(t, in))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
}

// TestARefusalShowsNoCredential writes one into every source that could carry it, also where it is none or is badly written.
func TestARefusalShowsNoCredential(t *testing.T) {
	const secret = "s3cret"
	for _, credential := range []string{secret, "jo:" + secret, secret + ":x-oauth-basic", "jo:%zz" + secret, "jo:" + secret + "/etc", "jo:" + secret + "@work"} {
		for _, form := range []string{
			`"url":"https://%s@a.example/b","sha256":"` + sum + `"`,
			`"url":"ftp://%s@a.example/b","sha256":"` + sum + `"`,
			`"url":"%s@a.example/b","sha256":"` + sum + `"`,
			`"url":"https://a.example/b","sha256_url":"https://%s@a.example/c"`,
			`"git":{"url":"https://%s@git.example/www","dockerfile":{}}`,
			`"git":{"url":"ext://%s@git.example/www","dockerfile":{}}`,
			`"git":{"url":"jo:%s@git.example:www","dockerfile":{}}`,
			`"git":{"url":"file://%s@git.example/www","dockerfile":{}}`,
			`"docker":{"image":"%s@registry.example/www"}`,
			`"docker":{"image":"%s@registry.example/www@` + digest + `"}`,
		} {
			in := source(strings.Replace(form, "%s", credential, 1))
			_, err := messages.Normalize("web", parse(t, in))
			if err == nil || strings.Contains(err.Error(), secret) {
				t.Errorf("%s: got %v", in, err)
			}
		}
	}
}

// TestAMapInARequestIsRead sends build arguments as protobuf, in which unknown fields are looked for at any depth.
func TestAMapInARequestIsRead(t *testing.T) {
	want := parse(t, git(`"dockerfile":{"args":{"A":"b"}}`))
	body, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := messages.DecodeRequest(fulmarv1.Kind_KIND_DEPLOY, body)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(proto.Message(want), got, protocmp.Transform()); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestNormalizePullsWhatIsWatched(t *testing.T) {
	images := []string{"www:live", "www@" + digest, "own:live"}
	pulls := []string{"", "", "never"}
	for watch, want := range map[bool][]string{true: {"always", "missing", "never"}, false: {"missing", "missing", "never"}} {
		r := &fulmarv1.DeployRequest{Watch: watch}
		for i, image := range images {
			d := &fulmarv1.DockerSource{Image: image, Pull: pulls[i]}
			r.Units = append(r.Units, &fulmarv1.UnitSpec{Name: string(rune('a' + i)), Image: &fulmarv1.Image{Source: &fulmarv1.Image_Docker{Docker: d}}})
		}
		n, err := messages.Normalize("web", r)
		if err != nil {
			t.Fatal(err)
		}
		for i, u := range n.GetUnits() {
			if got := u.GetImage().GetDocker().GetPull(); got != want[i] {
				t.Errorf("watch %v: %s is pulled %s, want %s", watch, images[i], got, want[i])
			}
		}
	}
}
